//! What SQLite does not say of a write-ahead log: whether it goes on behind the place where it cannot be read.
//!
//! SQLite takes the frames up to the first that does not match its checksum, and drops the rest without a word: after a
//! power cut that rest was never acknowledged. When a card has changed a byte it was. So this reads the file first, as
//! SQLite does, and looks behind the end. A cut exactly between two
//! commits shows nowhere. Source: sqlite.org/fileformat2.html, section 4.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const HEADER: usize = 32;
const FRAME: usize = 24;
/// Checksums in words of this byte order; the other magic number says big-endian.
const LITTLE: u32 = 0x377f_0682;
const BIG: u32 = 0x377f_0683;
/// Each time the log begins anew the first salt grows by one: what is behind the end may be of so many times ago.
const AGES: u32 = 1 << 16;

/// What is behind the last commit that can be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rest {
    /// Nothing that belongs to this log.
    Nothing,
    /// The beginning of a commit that was cut short. A process that was killed and a disk that was full leave that; so does
    /// damage to the very last commit, and nothing tells them apart.
    Begun,
    /// Something was written there that cannot be read any more. It may have been acknowledged.
    Lost,
}

/// Reads the log beside a database, before SQLite does.
///
/// # Errors
/// The disk's.
pub fn examine(path: &Path) -> io::Result<Rest> {
    match File::open(path) {
        Ok(file) => walk(BufReader::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rest::Nothing),
        Err(error) => Err(error),
    }
}

fn walk(mut log: impl Read) -> io::Result<Rest> {
    let mut header = [0; HEADER];
    match fill(&mut log, &mut header)? {
        0 => return Ok(Rest::Nothing),
        HEADER => {}
        // Cut off in its first line, and everything behind it too.
        _ => return Ok(Rest::Lost),
    }
    let little = match word(&header, 0) {
        LITTLE => true,
        BIG => false,
        _ => return Ok(Rest::Lost),
    };
    let (salts, size) = ((word(&header, 16), word(&header, 20)), page_size(word(&header, 8)));
    let mut sum = checksum(little, (0, 0), header.get(..24).unwrap_or_default());
    let (Some(size), true) = (size, sum == (word(&header, 24), word(&header, 28))) else {
        return Ok(Rest::Lost);
    };
    let mut frame = vec![0; FRAME + size];
    let (mut readable, mut ended, mut rest) = (true, false, Rest::Nothing);
    loop {
        let found = fill(&mut log, &mut frame)?;
        if found < 16 {
            return Ok(rest);
        }
        let theirs = (word(&frame, 8), word(&frame, 12));
        if readable && found == frame.len() && theirs == salts {
            let next = checksum(little, sum, frame.get(..8).unwrap_or_default());
            let next = checksum(little, next, frame.get(FRAME..).unwrap_or_default());
            if next == (word(&frame, 16), word(&frame, 20)) {
                sum = next;
                rest = match word(&frame, 4) {
                    0 => Rest::Begun,
                    _ => Rest::Nothing,
                };
                continue;
            }
        }
        if !is_older(theirs, salts) {
            // The last frame of a commit says so, by the size of the file. Frames without such a one are of a commit that
            // never ended: a kill or a full disk cut it short, and what was written after that may not cover all of them.
            // Nor has one ended whose last frame is not there to its end.
            ended |= theirs != salts || (found == frame.len() && word(&frame, 4) != 0);
            // The last one may be one that was being written; what comes behind another was written after it.
            if !readable && ended {
                return Ok(Rest::Lost);
            }
            rest = Rest::Begun;
        }
        readable = false;
    }
}

/// A frame that an earlier log left in the file.
fn is_older(frame: (u32, u32), salts: (u32, u32)) -> bool {
    frame.1 != salts.1 && (1..AGES).contains(&salts.0.wrapping_sub(frame.0))
}

fn page_size(size: u32) -> Option<usize> {
    let valid = size.is_power_of_two() && (512..=65536).contains(&size);
    usize::try_from(size).ok().filter(|_| valid)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at.saturating_add(4));
    four.and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn checksum(little: bool, from: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let order = |at: usize, eight: &[u8]| match little {
        true => word(eight, at).swap_bytes(),
        false => word(eight, at),
    };
    bytes.chunks_exact(8).fold(from, |(one, two), eight| {
        let one = one.wrapping_add(order(0, eight)).wrapping_add(two);
        (one, two.wrapping_add(order(4, eight)).wrapping_add(one))
    })
}

/// As much as there is.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// A log as SQLite leaves it when a process dies: a commit of one frame, then commits of more.
    fn log() -> Vec<u8> {
        let folder = Scratch::new(&format!("wal-{:?}", std::thread::current().id()));
        let path = folder.0.join("a.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; CREATE TABLE t (a, b)")
            .unwrap();
        for number in 0..8 {
            let text = "x".repeat(number * 700);
            connection.execute("INSERT INTO t VALUES (0, ?1)", [text]).unwrap();
        }
        let bytes = std::fs::read(folder.0.join("a.db-wal")).unwrap();
        drop(connection);
        bytes
    }

    #[test]
    fn a_whole_log_has_nothing_behind_it() {
        let log = log();
        assert_eq!(walk(log.as_slice()).unwrap(), Rest::Nothing);
        assert_eq!(walk(&[][..]).unwrap(), Rest::Nothing);
    }

    #[test]
    fn a_byte_changed_anywhere_is_noticed() {
        let log = log();
        let last = log.len() - FRAME - 4096;
        for at in (0..log.len()).step_by(61) {
            // The sequence number of checkpoints and what follows it is under the header's sum as well.
            let mut changed = log.clone();
            changed[at] ^= 0x10;
            let wanted = if at < last { Rest::Lost } else { Rest::Begun };
            assert_eq!(walk(changed.as_slice()).unwrap(), wanted, "byte {at}");
        }
    }

    #[test]
    fn what_is_left_of_a_commit_that_never_ended_is_no_loss() {
        let (log, frame) = (log(), FRAME + 4096);
        let last = log.len() - frame;
        assert_eq!(
            word(&log, last - frame + 4),
            0,
            "the last commit has two frames at least"
        );
        // Its beginning, twice: as if the second had been written over a longer one.
        let mut left = log[..last].to_vec();
        left.extend_from_slice(&log[last - frame..last]);
        left.extend_from_slice(&log[last - frame..last]);
        assert_eq!(walk(left.as_slice()).unwrap(), Rest::Begun);
        // As a full disk leaves it, which had room for a shorter commit then: all but the end of its last frame.
        let whole = left.len();
        for cut in [1, 100, frame - 16] {
            left.extend_from_slice(&log[last..log.len() - cut]);
            assert_eq!(walk(left.as_slice()).unwrap(), Rest::Begun, "{cut} bytes are missing");
            left.truncate(whole);
        }
        left.extend_from_slice(&log[last..]);
        assert_eq!(walk(left.as_slice()).unwrap(), Rest::Lost, "one that ended");
    }

    #[test]
    fn a_log_that_was_cut_is_noticed_unless_the_cut_is_between_commits() {
        let log = log();
        let frame = FRAME + 4096;
        let lost = |length: usize| walk(&log[..length]).unwrap() != Rest::Nothing;
        assert!(lost(20));
        assert!(!lost(HEADER));
        for length in (HEADER + 1..log.len()).step_by(61) {
            let rest = (length - HEADER) % frame;
            assert!(lost(length) || rest < 16, "cut to {length} bytes");
        }
    }

    #[test]
    fn what_an_earlier_log_left_behind_the_end_is_no_loss() {
        let mut log = log();
        let frame = FRAME + 4096;
        let last = log.len() - frame;
        let mut old = log[last..].to_vec();
        let earlier = word(&old, 8).wrapping_sub(3);
        old[8..12].copy_from_slice(&earlier.to_be_bytes());
        old[12] ^= 0xff;
        log.extend(old);
        log.extend([0x55; 9]);
        assert_eq!(walk(log.as_slice()).unwrap(), Rest::Nothing);
    }
}
