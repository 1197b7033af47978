//! Reads one attempt's log the way a client wants it: from where, which lines, how many bytes; on through rotation. Blocks.
//!
//! The shim renames a full log (`0.log.20260101-000000`) and begins a new one. A reader that has come to the end of a file
//! which is no longer the current one has read all of it, and goes on with the next.
//!
//! Source: Kubernetes v1.36, `cri-client/pkg/logs/logs.go` (`ReadLogs`, `logWriter`).

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::route::LogOptions;
use crate::kubelet::log_file::{Line, tail_offset};
use crate::wire::time;

/// Read at once, and about what one answer to `read` holds.
const BLOCK: usize = 32 << 10;
/// The shim writes no line as long as this: what is longer is no log.
const LONGEST_LINE: usize = 64 << 10;

/// What is left to read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Left {
    /// More can be read at once.
    More,
    /// Everything up to now has been read.
    CaughtUp,
    /// The client has all it wanted.
    Nothing,
}

/// A log being read.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    inode: u64,
    options: LogOptions,
    since: Option<Timestamp>,
    /// Bytes that the client may still get.
    room: u64,
    /// Bytes that may still be read: without `follow` a log that grows as fast as it is read must end all the same.
    raw: u64,
    /// A line that has not been read to its end.
    begun: Vec<u8>,
    /// The client's next byte begins a line.
    fresh: bool,
}

impl Reader {
    /// Opens the log at `path` where the client's part begins.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path, options: LogOptions, now: Timestamp) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let offset = options.tail.map_or(Ok(0), |lines| tail_offset(&mut file, lines))?;
        // Only now: of a log that grows meanwhile the last lines would be missing.
        let about = file.metadata()?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            inode: about.ino(),
            since: options.since.map(|since| since.instant(now)),
            room: options.limit.unwrap_or(u64::MAX),
            raw: match options.follow {
                true => u64::MAX,
                false => about.len().saturating_sub(offset),
            },
            options,
            begun: Vec::new(),
            fresh: true,
        })
    }

    /// Reads on; what the client gets is added to `out`, about as much as was read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&mut self, out: &mut Vec<u8>) -> io::Result<Left> {
        if self.room == 0 || self.raw == 0 {
            return Ok(Left::Nothing);
        }
        if self.block(out)? {
            return Ok(if self.room == 0 { Left::Nothing } else { Left::More });
        }
        let Some(next) = self.next_file()? else {
            return Ok(Left::CaughtUp);
        };
        // Between the end that was seen and the renaming something may have been written, afterwards nothing.
        if !self.block(out)? {
            let file = match File::open(&next) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Left::CaughtUp), // rotated again
                other => other?,
            };
            self.inode = file.metadata()?.ino();
            self.file = file;
            self.begun.clear();
        }
        Ok(Left::More)
    }

    /// Reads one block; false at the end of the file.
    fn block(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let mut block = vec![0; BLOCK];
        let most = usize::try_from(self.raw).unwrap_or(BLOCK).min(BLOCK);
        let read = self.file.read(block.get_mut(..most).unwrap_or_default())?;
        self.raw = self.raw.saturating_sub(read as u64);
        let mut rest = block.get(..read).unwrap_or_default();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            if self.begun.is_empty() {
                self.line(line, out);
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(line);
                self.line(&whole, out);
            }
        }
        if self.begun.len() + rest.len() <= LONGEST_LINE {
            self.begun.extend_from_slice(rest);
        } else {
            self.begun.clear();
        }
        Ok(read > 0)
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = Line::parse(line) else { return };
        if self.options.only.is_some_and(|only| only != line.stream) {
            return;
        }
        if let Some(since) = self.since {
            match time::parse(line.stamp) {
                Some(stamp) if stamp < since => return,
                _ => self.since = None, // stamps only grow
            }
        }
        if self.options.timestamps && self.fresh {
            self.put(line.stamp.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(line.text, out);
        self.fresh = !line.partial;
        if self.fresh {
            self.put(b"\n", out);
        }
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let most = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        out.extend_from_slice(bytes.get(..most).unwrap_or_default());
        self.room = self.room.saturating_sub(most as u64);
    }

    /// The file that follows this one, if this one is not the current one any more.
    fn next_file(&self) -> io::Result<Option<PathBuf>> {
        let current = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None), // the next one is not there yet
            other => other?,
        };
        if !self.options.follow || current.ino() == self.inode {
            return Ok(None);
        }
        let mut rotated = rotated(&self.path)?;
        rotated.sort();
        let ours = rotated
            .iter()
            .position(|path| fs::metadata(path).is_ok_and(|about| about.ino() == self.inode));
        // If ours is deleted already, the oldest that is left is the next.
        let next = rotated.get(ours.map_or(0, |at| at + 1));
        Ok(Some(next.unwrap_or(&self.path).clone()))
    }
}

/// Older files of a log.
fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let entries = fs::read_dir(folder)?.flatten();
    let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    Ok(own.map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::route::Since;
    use super::*;
    use crate::scratch::TempDir;

    fn stamp(second: i64) -> String {
        time::nanos(Timestamp::from_second(second).unwrap())
    }

    fn write(path: &Path, second: i64, stream: &str, tag: &str, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{} {stream} {tag} {text}", stamp(second)).unwrap();
    }

    /// Everything up to now.
    fn drain(reader: &mut Reader) -> (String, Left) {
        let mut out = Vec::new();
        loop {
            match reader.read(&mut out).unwrap() {
                Left::More => {}
                left => return (String::from_utf8(out).unwrap(), left),
            }
        }
    }

    fn log(dir: &TempDir) -> PathBuf {
        let path = dir.path().join("0.log");
        for (second, stream, tag, text) in [
            (1, "stdout", "F", "one"),
            (2, "stderr", "F", "two"),
            (3, "stdout", "P", "thr"),
            (4, "stdout", "F", "ee"),
            (5, "stdout", "F", ""),
        ] {
            write(&path, second, stream, tag, text);
        }
        path
    }

    #[test]
    fn a_client_gets_the_part_it_asked_for() {
        let dir = TempDir::new("log-part");
        let path = log(&dir);
        let now = Timestamp::from_second(5).unwrap();
        let base = LogOptions::default();
        let of = |options: LogOptions| drain(&mut Reader::open(&path, options, now).unwrap());
        for (options, expected) in [
            (base, "one\ntwo\nthree\n\n".to_owned()),
            (LogOptions { tail: Some(0), ..base }, String::new()),
            (LogOptions { tail: Some(2), ..base }, "ee\n\n".to_owned()),
            (LogOptions { limit: Some(5), ..base }, "one\nt".to_owned()),
            (
                LogOptions {
                    only: Some("stderr"),
                    ..base
                },
                "two\n".to_owned(),
            ),
            (
                LogOptions {
                    since: Some(Since::Seconds(3)),
                    ..base
                },
                "two\nthree\n\n".to_owned(),
            ),
            (
                LogOptions {
                    timestamps: true,
                    tail: Some(4),
                    ..base
                },
                format!("{} two\n{} three\n{} \n", stamp(2), stamp(3), stamp(5)),
            ),
        ] {
            assert_eq!(of(options), (expected, Left::Nothing), "{options:?}");
        }
    }

    #[test]
    fn without_follow_a_log_that_grows_ends_where_it_ended_when_it_was_asked_for() {
        let dir = TempDir::new("log-end");
        let path = log(&dir);
        let mut reader = Reader::open(&path, LogOptions::default(), Timestamp::UNIX_EPOCH).unwrap();
        write(&path, 6, "stdout", "F", "later");
        assert_eq!(drain(&mut reader), ("one\ntwo\nthree\n\n".to_owned(), Left::Nothing));
    }

    #[test]
    fn following_goes_through_every_rotation_and_loses_no_line() {
        let dir = TempDir::new("log-rotate");
        let path = dir.path().join("0.log");
        write(&path, 1, "stdout", "F", "a");
        let follow = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let mut reader = Reader::open(&path, follow, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(drain(&mut reader), ("a\n".to_owned(), Left::CaughtUp));
        write(&path, 2, "stdout", "F", "b");
        fs::rename(&path, dir.path().join("0.log.20260101-000001")).unwrap();
        assert_eq!(
            drain(&mut reader),
            ("b\n".to_owned(), Left::CaughtUp),
            "the next is not there yet"
        );
        write(&path, 3, "stdout", "F", "c");
        fs::rename(&path, dir.path().join("0.log.20260101-000002")).unwrap();
        write(&path, 4, "stdout", "F", "d");
        write(&dir.path().join("10.log"), 4, "stdout", "F", "of another");
        assert_eq!(drain(&mut reader), ("c\nd\n".to_owned(), Left::CaughtUp));
        fs::rename(&path, dir.path().join("0.log.20260101-000003")).unwrap();
        for old in ["1", "2", "3"] {
            fs::remove_file(dir.path().join(format!("0.log.20260101-00000{old}"))).unwrap();
        }
        write(&path, 5, "stdout", "F", "e");
        assert_eq!(
            drain(&mut reader),
            ("e\n".to_owned(), Left::CaughtUp),
            "ours was deleted"
        );
    }

    #[test]
    fn a_line_is_passed_on_once_it_is_whole_and_junk_never() {
        let dir = TempDir::new("log-junk");
        let path = dir.path().join("0.log");
        let follow = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        fs::write(&path, format!("junk\n{} stdout F hel", stamp(1))).unwrap();
        let mut reader = Reader::open(&path, follow, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(drain(&mut reader).0, "");
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"lo\n").unwrap();
        assert_eq!(drain(&mut reader).0, "hello\n");
        file.write_all(&vec![b'x'; 3 * LONGEST_LINE]).unwrap();
        file.write_all(b"\n").unwrap();
        write(&path, 2, "stdout", "F", "on");
        assert_eq!(drain(&mut reader).0, "on\n");
        assert!(reader.begun.len() <= LONGEST_LINE);
    }

    #[test]
    fn a_long_log_comes_in_pieces() {
        let dir = TempDir::new("log-long");
        let path = dir.path().join("0.log");
        let line = format!("{} stdout F {}\n", stamp(1), "y".repeat(100));
        fs::write(&path, line.repeat(5000)).unwrap();
        let mut reader = Reader::open(&path, LogOptions::default(), Timestamp::UNIX_EPOCH).unwrap();
        let (mut total, mut pieces) = (0, 0);
        loop {
            let mut out = Vec::new();
            let left = reader.read(&mut out).unwrap();
            assert!(out.len() <= 2 * BLOCK);
            (total, pieces) = (total + out.len(), pieces + 1);
            if left != Left::More {
                break;
            }
        }
        assert_eq!(total, 5000 * 101);
        assert!(pieces > 10);
    }
}
