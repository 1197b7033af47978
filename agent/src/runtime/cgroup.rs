//! Cgroups of pods and containers, version 1 and 2: limits, entering, killing, counting kills for want of memory.
//!
//! Which version is decided once, by what is mounted; on a hybrid machine the controllers are version 1's. A limit whose
//! controller the kernel does not have is left out ([`Cgroups::missing`] names it): Raspberry Pi OS boots without the memory
//! controller unless its kernel command line asks for it, and pods must run there too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Limits;

/// Length of the period that CPU quotas count in. Source: Kubernetes `pkg/kubelet/cm.QuotaPeriod`.
const PERIOD: u64 = 100_000;
/// What the limits and the rules about devices need.
const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];

/// The hierarchies of this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Cgroups {
    /// Where it is mounted.
    Two(PathBuf),
    /// Each controller (or `name=systemd`) and where its hierarchy is mounted.
    One(Vec<(String, PathBuf)>),
}

impl Cgroups {
    /// Looks at what is mounted.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::of(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Decides by the text of `/proc/PID/mountinfo`.
    fn of(mounts: &str) -> Self {
        let (mut one, mut two) = (Vec::<(String, PathBuf)>::new(), None);
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(place) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) if two.is_none() => two = Some(place.into()),
                (Some("cgroup"), Some(options)) => {
                    let known = |option: &&str| NEEDED.contains(option) || ["devices", "name=systemd"].contains(option);
                    one.extend(options.split(',').filter(known).map(|name| (name.into(), place.into())));
                }
                _ => {}
            }
        }
        match two {
            Some(place) if !one.iter().any(|(name, _)| NEEDED.contains(&name.as_str())) => Self::Two(place),
            _ => Self::One(one),
        }
    }

    /// Controllers that limits need and the kernel does not offer.
    pub fn missing(&self) -> Vec<&'static str> {
        let offered: Vec<String> = match self {
            Self::Two(root) => fs::read_to_string(root.join("cgroup.controllers"))
                .map(|text| text.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            Self::One(all) => all.iter().map(|(name, _)| name.clone()).collect(),
        };
        NEEDED
            .into_iter()
            .filter(|need| !offered.iter().any(|name| name == need))
            .collect()
    }

    /// Whether a process can see its own limits through a cgroup namespace.
    pub fn is_two(&self) -> bool {
        matches!(self, Self::Two(_))
    }

    /// The folders of a cgroup, one per hierarchy; `path` is relative to the root.
    fn folders(&self, path: &str) -> Vec<PathBuf> {
        match self {
            Self::Two(root) => vec![root.join(path)],
            Self::One(all) => {
                let mut folders: Vec<_> = all.iter().map(|(_, root)| root.join(path)).collect();
                folders.sort();
                folders.dedup();
                folders
            }
        }
    }

    fn folder(&self, controller: &str, path: &str) -> Option<PathBuf> {
        match self {
            Self::Two(root) => Some(root.join(path)),
            Self::One(all) => all
                .iter()
                .find(|(name, _)| name == controller)
                .map(|(_, root)| root.join(path)),
        }
    }

    /// Makes a cgroup with its parents and sets its limits.
    pub fn create(&self, path: &str, limits: &Limits) -> io::Result<()> {
        if let Self::Two(root) = self {
            delegate(root, path)?;
        }
        for folder in self.folders(path) {
            fs::create_dir_all(folder)?;
        }
        for (controller, file, value) in self.settings(limits) {
            let Some(folder) = self.folder(controller, path) else {
                continue;
            };
            match fs::write(folder.join(file), &value) {
                // The controller is off, or swap is not counted.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
                Err(error) if file.contains("sw") => drop(error),
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{controller} limit {value}: {error}"),
                    ));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Which files say these limits: controller, file, content.
    fn settings(&self, limits: &Limits) -> Vec<(&'static str, &'static str, String)> {
        let mut files = Vec::new();
        let two = self.is_two();
        if let Some(bytes) = limits.memory {
            let (limit, swap, swap_value) = if two {
                ("memory.max", "memory.swap.max", 0)
            } else {
                ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes)
            };
            files.push(("memory", limit, bytes.to_string()));
            files.push(("memory", swap, swap_value.to_string()));
        }
        if let Some(quota) = limits.cpu_quota {
            if two {
                files.push(("cpu", "cpu.max", format!("{quota} {PERIOD}")));
            } else {
                files.push(("cpu", "cpu.cfs_period_us", PERIOD.to_string()));
                files.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
            }
        }
        if let Some(shares) = limits.cpu_shares {
            let shares = shares.clamp(2, 262_144);
            if two {
                // Source: Kubernetes `pkg/kubelet/cm.CpuSharesToCpuWeight`.
                files.push(("cpu", "cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string()));
            } else {
                files.push(("cpu", "cpu.shares", shares.to_string()));
            }
        }
        if let Some(pids) = limits.pids {
            files.push(("pids", "pids.max", pids.to_string()));
        }
        files
    }

    /// Lets the processes of a cgroup open only the devices every container has. Version 1 only.
    pub fn restrict_devices(&self, path: &str) -> io::Result<()> {
        let Self::One(all) = self else { return Ok(()) };
        let Some((_, root)) = all.iter().find(|(name, _)| name == "devices") else {
            return Ok(());
        };
        let folder = root.join(path);
        fs::write(folder.join("devices.deny"), "a")?;
        // Making nodes is allowed, opening them is not; then null, zero, full, random, urandom, tty, ptmx, pts.
        for rule in [
            "c *:* m",
            "b *:* m",
            "c 1:3 rwm",
            "c 1:5 rwm",
            "c 1:7 rwm",
            "c 1:8 rwm",
            "c 1:9 rwm",
            "c 5:0 rwm",
            "c 5:2 rwm",
            "c 136:* rwm",
        ] {
            fs::write(folder.join("devices.allow"), rule)?;
        }
        Ok(())
    }

    /// Whether a cgroup can forbid opening devices.
    pub fn restricts_devices(&self) -> bool {
        matches!(self, Self::One(all) if all.iter().any(|(name, _)| name == "devices"))
    }

    /// Moves the calling process in.
    pub fn enter(&self, path: &str) -> io::Result<()> {
        for folder in self.folders(path) {
            fs::write(folder.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// How often the kernel killed a process of this cgroup for want of memory.
    pub fn memory_kills(&self, path: &str) -> u64 {
        let file = if self.is_two() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = self
            .folder("memory", path)
            .and_then(|folder| fs::read_to_string(folder.join(file)).ok());
        let count = |text: String| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("oom_kill ").map(str::to_owned))?;
            line.trim().parse().ok()
        };
        text.and_then(count).unwrap_or(0)
    }

    /// Kills every process in the cgroup and below it.
    pub fn kill(&self, path: &str) {
        for folder in self.folders(path) {
            if self.is_two() && fs::write(folder.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            each_below(&folder, &mut |folder| {
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                for pid in text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            });
        }
    }

    /// Removes the cgroup and those below it; what is not there is removed already.
    ///
    /// # Errors
    /// `EBUSY` when processes are still in it.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let mut result = Ok(());
        for folder in self.folders(path) {
            each_below(&folder, &mut |folder| match fs::remove_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                _ => {}
            });
        }
        result
    }

    /// Kills and removes, waiting up to `patience` for the kernel to let go of what was killed.
    pub fn destroy(&self, path: &str, patience: Duration) -> io::Result<()> {
        const STEP: Duration = Duration::from_millis(5);
        let mut left = patience;
        loop {
            match self.remove(path) {
                Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && !left.is_zero() => {
                    self.kill(path);
                    thread::sleep(STEP);
                    left = left.saturating_sub(STEP);
                }
                other => return other,
            }
        }
    }
}

/// Calls `visit` with a folder and all below, the deepest first.
fn each_below(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each_below(&entry.path(), visit);
        }
    }
    visit(folder);
}

/// Version 2: lets every cgroup above `path` hand its controllers down.
fn delegate(root: &Path, path: &str) -> io::Result<()> {
    let mut folder = root.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        hand_down(&folder);
        folder.push(part);
        fs::create_dir_all(&folder)?;
    }
    hand_down(&folder);
    Ok(())
}

fn hand_down(folder: &Path) {
    for controller in NEEDED {
        // One by one: a kernel without one of them must still give the others.
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
27 24 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
28 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    const PURE: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn a_hybrid_machine_limits_by_version_one() {
        let Cgroups::One(all) = Cgroups::of(HYBRID) else {
            panic!("version 2")
        };
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "memory", "name=systemd"]);
        assert_eq!(Cgroups::of(PURE), Cgroups::Two("/sys/fs/cgroup".into()));
    }

    #[test]
    fn limits_are_said_in_each_versions_files() {
        let limits = Limits {
            memory: Some(1 << 20),
            cpu_quota: Some(20_000),
            cpu_shares: Some(1024),
            pids: Some(9),
        };
        let text = |cgroups: Cgroups| {
            let all = cgroups.settings(&limits).into_iter();
            all.map(|(_, file, value)| format!("{file}={value}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            text(Cgroups::of(PURE)),
            "memory.max=1048576 memory.swap.max=0 cpu.max=20000 100000 cpu.weight=39 pids.max=9"
        );
        assert_eq!(
            text(Cgroups::of(HYBRID)),
            "memory.limit_in_bytes=1048576 memory.memsw.limit_in_bytes=1048576 cpu.cfs_period_us=100000 \
             cpu.cfs_quota_us=20000 cpu.shares=1024 pids.max=9"
        );
        assert!(Cgroups::of(PURE).settings(&Limits::default()).is_empty());
    }
}
