//! What this machine is: processors, memory, disk, kernel, identity. Read from the kernel; no decisions.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Machine {
    /// Processors that may be used.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// `/etc/machine-id`, 32 hexadecimal digits; empty if the machine has none.
    pub machine_id: String,
    /// The firmware's UUID of the board, or the machine id.
    pub system_uuid: String,
    /// A UUID that changes with every boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os_image: String,
}

/// Space on the file system of the agent's data.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Disk {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that are free.
    pub free: u64,
}

impl Machine {
    /// Asks the kernel.
    pub fn read() -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
            memory: total_memory(&line("/proc/meminfo")),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: pretty_name(&line("/etc/os-release")),
        }
    }
}

impl Disk {
    /// Asks the kernel about the file system that holds `path`; zeros if there is no such path.
    pub fn read(path: &Path) -> Self {
        let Ok(stat) = statvfs(path) else {
            return Self::default();
        };
        #[expect(clippy::useless_conversion, reason = "these are 32 bits wide on some targets")]
        let (unit, blocks, free) = (
            u64::from(stat.fragment_size()),
            u64::from(stat.blocks()),
            u64::from(stat.blocks_available()),
        );
        Self {
            total: blocks.saturating_mul(unit),
            free: free.saturating_mul(unit),
        }
    }
}

/// Bytes of `MemTotal`.
fn total_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn pretty_name(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_texts_are_read() {
        assert_eq!(
            total_memory("MemTotal:         254976 kB\nMemFree: 1 kB"),
            254_976 * 1024
        );
        assert_eq!(total_memory(""), 0);
        assert_eq!(pretty_name("ID=x\nPRETTY_NAME=\"Some Linux 12\"\n"), "Some Linux 12");
        let here = Machine::read();
        assert!(here.cpus > 0 && here.memory > 0 && !here.kernel.is_empty());
        assert!(Disk::read(Path::new("/")).total > 0);
    }
}
