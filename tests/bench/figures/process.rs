//! What the kernel says of running programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// The kernel's clock ticks a second, of `/proc/PID/stat`. The same on every architecture since Linux 2.6.
const TICKS: u64 = 100;

/// Every process that runs this program: agents, servers and the shims of their pods.
pub fn of_program(path: &Path) -> Vec<u32> {
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == path))
        .collect()
}

/// Proportional set size in bytes, of all together.
pub fn pss(pids: &[u32]) -> u64 {
    let one = |pid: &u32| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:") * 1024;
    pids.iter().map(one).sum()
}

/// CPU time used so far, threads that have ended included.
pub fn cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may hold anything, even parentheses.
    let (_, after) = text.rsplit_once(')').unwrap();
    let ticks = |number: usize| -> u64 { after.split_whitespace().nth(number).unwrap().parse().unwrap() };
    Duration::from_millis((ticks(11) + ticks(12)) * 1000 / TICKS)
}

/// Bytes that it has caused to be written to storage.
pub fn written(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/io"), "write_bytes:")
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
