//! A container's log in CRI format, with rotation.
//!
//! The shim rotates by itself: nobody else need be alive for the disk not to fill. A disk that is full costs lines, never
//! the container's progress. Nothing is synced: flash would wear out for lines that nobody misses after a power cut.
//!
//! Format: `2016-10-06T00:17:09.669794202Z stdout F text`; `P` marks a line that goes on in the next.
//! Source: Kubernetes `design-proposals/node/kubelet-cri-logging.md`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::runtime::message::LogPlan;
use crate::wire::time;

/// Longer lines are cut and marked. Source: containerd `max_container_log_line_size`.
const MAX_LINE: usize = 16 << 10;

/// An open log.
pub(super) struct Log {
    plan: LogPlan,
    file: Option<File>,
    size: u64,
}

impl Log {
    /// Opens it for appending, making the folder.
    pub fn open(plan: LogPlan) -> io::Result<Self> {
        if let Some(folder) = plan.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut log = Self {
            plan,
            file: None,
            size: 0,
        };
        log.reopen()?;
        Ok(log)
    }

    /// Appends whole lines of [`frame`]; what cannot be written is lost.
    pub fn append(&mut self, lines: &[u8], now: Timestamp) {
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.plan.max_bytes {
            self.rotate(now);
        }
        if self.file.is_none() {
            let _ = self.reopen();
        }
        if let Some(file) = &mut self.file
            && file.write_all(lines).is_ok()
        {
            self.size = self.size.saturating_add(length);
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.plan.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Renames the file as the kubelet does (`0.log.20251125-120000`) and removes the oldest beyond the number kept.
    fn rotate(&mut self, now: Timestamp) {
        let mut old = self.plan.path.clone().into_os_string();
        old.push(now.strftime(".%Y%m%d-%H%M%S").to_string());
        let old = PathBuf::from(old);
        // Twice in one second: the file grows until the next one.
        if self.plan.max_files > 1 && old.exists() {
            return;
        }
        let moved = if self.plan.max_files > 1 {
            fs::rename(&self.plan.path, &old)
        } else {
            fs::remove_file(&self.plan.path)
        };
        if moved.is_ok() {
            self.file = None;
            remove_oldest(&self.plan.path, self.plan.max_files.saturating_sub(1));
        }
    }
}

/// Keeps the newest `keep` rotated files of a log.
fn remove_oldest(log: &Path, keep: usize) {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    let rotated = |path: &PathBuf| {
        let rest = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with('.'))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut old: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(rotated).collect();
    old.sort();
    let surplus = old.len().saturating_sub(keep);
    for path in old.iter().take(surplus) {
        let _ = fs::remove_file(path);
    }
}

/// Turns what was read from `stream` into lines in `out`. `partial` holds the line begun and not ended, at most 16 KiB.
pub(super) fn frame(stream: &str, now: Timestamp, partial: &mut Vec<u8>, chunk: &[u8], out: &mut Vec<u8>) {
    let stamp = time::nanos(now);
    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
        let (mut text, ended) = match piece.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (piece, false),
        };
        while partial.len() + text.len() > MAX_LINE {
            let (now, later) = text.split_at(MAX_LINE.saturating_sub(partial.len()).min(text.len()));
            line(out, &stamp, stream, "P", &[partial, now]);
            partial.clear();
            text = later;
        }
        if ended {
            line(out, &stamp, stream, "F", &[partial, text]);
            *partial = Vec::new(); // gives its memory back
        } else {
            partial.extend_from_slice(text);
        }
    }
}

/// Ends a line that its writer never ended.
pub(super) fn finish(stream: &str, now: Timestamp, partial: &mut Vec<u8>, out: &mut Vec<u8>) {
    if !partial.is_empty() {
        frame(stream, now, partial, b"\n", out);
    }
}

fn line(out: &mut Vec<u8>, stamp: &str, stream: &str, tag: &str, text: &[&[u8]]) {
    for part in [stamp, " ", stream, " ", tag, " "] {
        out.extend_from_slice(part.as_bytes());
    }
    for part in text {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::TempDir;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut partial, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            frame("stdout", Timestamp::UNIX_EPOCH, &mut partial, chunk, &mut out);
        }
        finish("stdout", Timestamp::UNIX_EPOCH, &mut partial, &mut out);
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_framed_however_the_bytes_arrive() {
        let stamp = "1970-01-01T00:00:00.000000000Z stdout";
        for (chunks, expected) in [
            (vec!["a\nb\n"], vec!["F a", "F b"]),
            (vec!["a", "b", "\n"], vec!["F ab"]),
            (vec!["a\n\nb"], vec!["F a", "F ", "F b"]),
            (vec![""], vec![]),
        ] {
            let bytes: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
            let expected: Vec<String> = expected.iter().map(|text| format!("{stamp} {text}")).collect();
            assert_eq!(lines(&bytes), expected, "{chunks:?}");
        }
    }

    #[test]
    fn long_lines_are_cut_at_sixteen_kibibytes_and_lose_nothing() {
        let long = "x".repeat(2 * MAX_LINE + 5);
        let framed = lines(&[long.as_bytes()]);
        let parts: Vec<_> = framed.iter().map(|line| line.split_at(38).1).collect();
        let tags: Vec<_> = parts.iter().map(|part| &part[..1]).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        assert_eq!(parts.iter().map(|part| &part[2..]).collect::<String>(), long);
    }

    #[test]
    fn a_log_that_grows_keeps_only_its_newest_files() {
        let scratch = TempDir::new("log");
        let folder = scratch.path();
        let plan = LogPlan {
            path: folder.join("0.log"),
            max_bytes: 10,
            max_files: 3,
        };
        let mut log = Log::open(plan).unwrap();
        for second in 0..6 {
            log.append(b"12345678\n", Timestamp::from_second(second).unwrap());
        }
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.19700101-000004", "0.log.19700101-000005"]);
        assert_eq!(fs::read(folder.join("0.log")).unwrap(), b"12345678\n");
    }
}
