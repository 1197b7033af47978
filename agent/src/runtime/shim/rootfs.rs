//! A container's file system: layers stacked, kernel file systems, volumes, and what is hidden or read-only.
//!
//! Runs in the container's first process, in its own mount namespace: everything mounted here goes with it. Targets are
//! resolved inside the new root by [`Tree`], because the image's links are foreign.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, chroot, pivot_root, symlinkat};

use crate::runtime::Mount;
use crate::runtime::message::Failure;
use crate::runtime::plan::Plan;
use crate::sys::tree::{Tree, by_descriptor};

/// Hidden and read-only paths. Source: Kubernetes v1.36, `pkg/securitycontext.defaultMaskedPaths`, `defaultReadonlyPaths`.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Makes the file system at the plan's root. `cgroup`: show the cgroup namespace's own tree.
pub(super) fn build(plan: &Plan, cgroup: bool) -> Result<(), Failure> {
    let none = None::<&str>;
    // What the node mounts and unmounts later reaches us, what we do stays here.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(none, "/", none, slave, none).map_err(failed("separate its mounts"))?;
    overlay(plan).map_err(failed("stack the image's layers"))?;
    let tree = Tree::open(&plan.root).map_err(failed("open its root"))?;
    kernel(&tree, plan, cgroup)?;
    devices(&tree, plan.privileged).map_err(failed("make its devices"))?;
    for volume in &plan.mounts {
        bind(&tree, volume).map_err(|error| {
            let (from, to) = (volume.source.display(), volume.target.display());
            Failure::start(format!("failed to mount {from} at {to}: {error}"))
        })?;
    }
    if !plan.privileged {
        hide(&tree).map_err(failed("hide what is the node's"))?;
    }
    if plan.read_only_root {
        read_only(&tree, Path::new("/")).map_err(failed("make its root read-only"))?;
    }
    change_root(&plan.root).map_err(failed("change the root"))
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::start(format!("cannot {step}: {}", error.into()))
}

/// Layers are named relative to the current folder: the options must fit one page.
fn overlay(plan: &Plan) -> io::Result<()> {
    chdir(&plan.layers_in)?;
    let writable = plan.writable.display();
    let options = format!(
        "lowerdir={},upperdir={writable}/upper,workdir={writable}/work",
        plan.layers.join(":")
    );
    if options.len() > 4095 {
        let count = plan.layers.len();
        return Err(io::Error::other(format!(
            "{count} layers are more than fit in a mount's options"
        )));
    }
    let stack = |options: &str| {
        mount(
            Some("overlay"),
            &plan.root,
            Some("overlay"),
            MsFlags::empty(),
            Some(options),
        )
    };
    // Without syncs: what a container writes outside volumes is gone with it anyway. Old kernels do not know the option.
    match stack(&format!("{options},volatile")) {
        Err(Errno::EINVAL) => stack(&options)?,
        other => other?,
    }
    Ok(chdir("/")?)
}

/// `proc`, `sys`, `dev` and what is in them.
fn kernel(tree: &Tree, plan: &Plan, cgroup: bool) -> Result<(), Failure> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let rights = if plan.privileged {
        MsFlags::empty()
    } else {
        MsFlags::MS_RDONLY
    };
    let pty = Some("newinstance,ptmxmode=0666,mode=0620,gid=5");
    let dev = Some("mode=755,size=65536k");
    let mounts: [(&str, &str, MsFlags, Option<&str>); 5] = [
        ("/proc", "proc", quiet, None),
        ("/dev", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME, dev),
        ("/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, pty),
        ("/dev/mqueue", "mqueue", quiet, None),
        ("/sys", "sysfs", quiet | rights, None),
    ];
    for (target, kind, flags, options) in mounts {
        let mounted =
            put(tree, target).and_then(|at| Ok(mount(Some(kind), &by_descriptor(&at), Some(kind), flags, options)?));
        match mounted {
            // A kernel without POSIX message queues still runs containers.
            Err(error) if kind == "mqueue" && error.raw_os_error() == Some(Errno::ENODEV as i32) => {}
            other => other.map_err(|error| Failure::start(format!("cannot mount {target}: {error}")))?,
        }
    }
    let shm = Mount {
        source: plan.shm.clone(),
        target: "/dev/shm".into(),
        ..Mount::default()
    };
    bind(tree, &shm).map_err(failed("share the pod's memory"))?;
    if cgroup {
        let at = put(tree, "/sys/fs/cgroup").map_err(failed("find a place for its cgroup"))?;
        let kind = Some("cgroup2");
        mount(kind, &by_descriptor(&at), kind, quiet | rights, None::<&str>).map_err(failed("show its cgroup"))?;
    }
    Ok(())
}

fn put(tree: &Tree, target: &str) -> io::Result<std::os::fd::OwnedFd> {
    tree.mount_point(Path::new(target), true)
}

fn devices(tree: &Tree, all: bool) -> io::Result<()> {
    let dev = tree.resolve(Path::new("/dev"), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(&dev, name, SFlag::S_IFCHR, mode, makedev(major, minor))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name)?;
    }
    if all {
        copy_devices(tree, Path::new("/dev"), 0)?;
    }
    Ok(())
}

/// Gives a privileged container every device the node has.
fn copy_devices(tree: &Tree, from: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(from)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(seen) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = seen.file_type();
        if kind.is_dir() && depth < 4 {
            let own = depth == 0 && ["pts", "shm", "mqueue"].iter().any(|own| name == *own);
            if !own {
                copy_devices(tree, &path, depth + 1)?;
            }
        } else if kind.is_char_device() || kind.is_block_device() {
            let parent = tree.folder(from, &mut |_, _, _| Ok(()))?;
            let kind = if kind.is_char_device() {
                SFlag::S_IFCHR
            } else {
                SFlag::S_IFBLK
            };
            let mode = Mode::from_bits_truncate(seen.mode());
            match mknodat(&parent, name.as_os_str(), kind, mode, seen.rdev()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// Shows a file or folder of the node.
fn bind(tree: &Tree, volume: &Mount) -> io::Result<()> {
    let is_folder = fs::metadata(&volume.source)?.is_dir();
    let at = tree.mount_point(&volume.target, is_folder)?;
    let (none, flags) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC);
    mount(Some(&volume.source), &by_descriptor(&at), none, flags, none)?;
    if !volume.follow_host {
        let top = tree.resolve(&volume.target, OFlag::O_PATH)?;
        mount(
            none,
            &by_descriptor(&top),
            none,
            MsFlags::MS_PRIVATE | MsFlags::MS_REC,
            none,
        )?;
    }
    if volume.read_only {
        read_only(tree, &volume.target)?;
    }
    Ok(())
}

/// Makes the mount at `target` read-only and keeps its other restrictions.
fn read_only(tree: &Tree, target: &Path) -> io::Result<()> {
    let top = tree.resolve(target, OFlag::O_PATH)?;
    let path = by_descriptor(&top);
    let seen = statvfs(&path)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (has, keep) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
    ] {
        if seen.contains(has) {
            flags |= keep;
        }
    }
    Ok(mount(None::<&str>, &path, None::<&str>, flags, None::<&str>)?)
}

fn hide(tree: &Tree) -> io::Result<()> {
    let none = None::<&str>;
    for path in MASKED {
        let at = match tree.resolve(Path::new(path), OFlag::O_PATH) {
            Ok(at) => at,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let place = by_descriptor(&at);
        if fs::metadata(&place)?.is_dir() {
            mount(
                Some("tmpfs"),
                &place,
                Some("tmpfs"),
                MsFlags::MS_RDONLY,
                Some("size=0k"),
            )?;
        } else {
            mount(Some("/dev/null"), &place, none, MsFlags::MS_BIND, none)?;
        }
    }
    for path in READ_ONLY {
        let at = match tree.resolve(Path::new(path), OFlag::O_PATH) {
            Ok(at) => at,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let place = by_descriptor(&at);
        mount(Some(&place), &place, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        read_only(tree, Path::new(path))?;
    }
    Ok(())
}

/// Makes `root` the root and lets go of the node's.
fn change_root(root: &Path) -> io::Result<()> {
    chdir(root)?;
    // Old root and new one stacked at the same place: no folder is needed for the old one. See pivot_root(2).
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // The node itself runs from an initramfs, which cannot be pivoted away.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
            chroot(".")?;
        }
        Err(errno) => return Err(errno.into()),
    }
    Ok(chdir("/")?)
}

/// Shows a terminal as the container's console.
pub(super) fn console(terminal: &impl AsRawFd) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(0o600);
    match mknodat(AT_FDCWD, "/dev/console", SFlag::S_IFREG, mode, 0) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let none = None::<&str>;
    Ok(mount(
        Some(&by_descriptor(terminal)),
        "/dev/console",
        none,
        MsFlags::MS_BIND,
        none,
    )?)
}
