//! Container logs as they lie on disk: `TIME STREAM P|F TEXT`, one file an attempt (CRI format).
//!
//! Lines longer than the shim's buffer come in parts marked `P`. Source: Kubernetes v1.36,
//! `pkg/kubelet/kuberuntime/logs`.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// One line of a log file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Line<'a> {
    /// RFC 3339 with nanoseconds.
    pub stamp: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// More of the same line follows.
    pub partial: bool,
    /// What the container printed, without the line's end.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads a line without its newline; `None` if it is not of the format.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let stamp = std::str::from_utf8(fields.next()?).ok()?;
        let stream = std::str::from_utf8(fields.next()?)
            .ok()
            .filter(|it| matches!(*it, "stdout" | "stderr"))?;
        let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self {
            stamp,
            stream,
            partial,
            text: fields.next().unwrap_or_default(),
        })
    }
}

/// Read at once when a file is searched from its end.
const BLOCK: usize = 32 << 10;

/// Where the last `lines` lines begin. A last line without an end counts.
///
/// # Errors
/// The kernel's.
pub fn tail_offset(file: &mut File, lines: usize) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut left = lines;
    let mut last_byte = true;
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let length = usize::try_from(end).unwrap_or(BLOCK).min(BLOCK);
        let begin = end - length as u64;
        file.seek(SeekFrom::Start(begin))?;
        let part = block.get_mut(..length).unwrap_or_default();
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            if *byte == b'\n' && !std::mem::take(&mut last_byte) {
                left -= 1;
                if left == 0 {
                    return Ok(begin + index as u64 + 1);
                }
            }
            last_byte = false;
        }
        end = begin;
    }
    Ok(0)
}

/// What the container printed last: at most so many lines and bytes.
///
/// # Errors
/// The kernel's; a missing file is empty.
pub fn ending(path: &Path, lines: usize, bytes: u64) -> io::Result<String> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other?,
    };
    // Stamps and marks take room too; a line is a hundred bytes at most beside its text.
    let room = bytes.saturating_add(lines as u64 * 100);
    let offset = tail_offset(&mut file, lines)?.max(file.metadata()?.len().saturating_sub(room));
    file.seek(SeekFrom::Start(offset))?;
    let mut raw = Vec::new();
    file.take(room).read_to_end(&mut raw)?;
    let mut text = Vec::new();
    for line in raw.split(|byte| *byte == b'\n').filter_map(Line::parse) {
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let surplus = text.len().saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(String::from_utf8_lossy(text.get(surplus..).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scratch::TempDir;

    #[test]
    fn lines_are_taken_apart() {
        let line = Line::parse(b"2026-01-01T00:00:00.000000001Z stderr F a b  c").unwrap();
        assert_eq!(
            (line.stream, line.partial, line.text),
            ("stderr", false, &b"a b  c"[..])
        );
        assert!(Line::parse(b"2026-01-01T00:00:00Z stdout P x").unwrap().partial);
        assert_eq!(Line::parse(b"2026-01-01T00:00:00Z stdout F").unwrap().text, b"");
        for bad in [&b""[..], b"x", b"t stdlog F x", b"t stdout Q x", b"t stdout"] {
            assert_eq!(Line::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_last_words_are_bounded_and_whole() {
        let dir = TempDir::new("ending");
        let path = dir.path().join("0.log");
        let line = |mark: &str, text: &str| format!("2026-01-01T00:00:00.000000000Z stdout {mark} {text}\n");
        let text = [line("F", "one"), line("P", "tw"), line("F", "o"), line("F", "three")].concat();
        std::fs::write(&path, text).unwrap();
        assert_eq!(ending(&path, 3, 100).unwrap(), "two\nthree\n");
        assert_eq!(ending(&path, 80, 7).unwrap(), "\nthree\n");
        assert_eq!(ending(&dir.path().join("none"), 1, 1).unwrap(), "");
    }

    proptest! {
        #[test]
        fn a_tail_begins_where_as_many_lines_are_left(text in "[ab\n]{0,300}", lines in 0usize..20) {
            let dir = TempDir::new("tail");
            let path = dir.path().join("log");
            std::fs::write(&path, &text).unwrap();
            let offset = tail_offset(&mut File::open(&path).unwrap(), lines).unwrap();
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            let expected: String = all[all.len().saturating_sub(lines)..].concat();
            prop_assert_eq!(&text[usize::try_from(offset).unwrap()..], expected);
        }
    }
}
