//! File operations below a folder that hostile names and links cannot leave.
//!
//! Paths are resolved by `openat2` with the folder as root: `..`, absolute symlinks and `/proc` magic links end inside it.
//! Needs Linux 5.6. Everything is relative to descriptors, so nothing can be swapped between check and use.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// Deeper paths are refused: no real image has them, and each level costs a system call.
pub const MAX_DEPTH: usize = 128;

/// A folder that bounds every path given to it.
pub struct Tree {
    folder: OwnedFd,
}

impl Tree {
    /// Takes an existing folder as the root.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self { folder })
    }

    /// Opens `path` below the root, following links inside it.
    pub fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let inside = if inside.as_os_str().is_empty() {
            Path::new(".")
        } else {
            inside
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // A rename elsewhere in the tree can make the kernel ask for another try.
        for _ in 0..16 {
            match openat2(&self.folder, inside, how) {
                Err(Errno::EAGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Opens the folder `path`, making what is missing; `made` is told each folder made: its path, and parent and name.
    pub fn folder(
        &self,
        path: &Path,
        made: &mut dyn FnMut(&Path, BorrowedFd<'_>, &OsStr) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.resolve(path, flags) {
            Err(Errno::ENOENT) => {}
            other => return Ok(other?),
        }
        let clean = lexical(path)?;
        let mut so_far = PathBuf::new();
        let mut current = self.resolve(Path::new("."), flags)?;
        for component in clean.iter() {
            let parent_path = so_far.clone();
            so_far.push(component);
            current = match self.resolve(&so_far, flags) {
                Ok(folder) => folder,
                Err(Errno::ENOENT) => {
                    match mkdirat(&current, component, Mode::from_bits_truncate(0o755)) {
                        Ok(()) => made(&so_far, current.as_fd(), component)?,
                        // A link to nowhere stands in the way.
                        Err(Errno::EEXIST) => return Err(io::Error::from(Errno::ELOOP)),
                        Err(errno) => return Err(errno.into()),
                    }
                    self.resolve(&parent_path.join(component), flags)?
                }
                Err(errno) => return Err(errno.into()),
            };
        }
        Ok(current)
    }

    /// Opens `path` for something to be mounted on it: a folder or an empty file is made if nothing is there.
    pub fn mount_point(&self, path: &Path, is_folder: bool) -> io::Result<OwnedFd> {
        if is_folder {
            return self.folder(path, &mut |_, _, _| Ok(()));
        }
        match self.resolve(path, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            other => return Ok(other?),
        }
        let clean = lexical(path)?;
        let name = clean.file_name().ok_or(Errno::EINVAL)?.to_owned();
        let parent = self.folder(clean.parent().unwrap_or(Path::new("")), &mut |_, _, _| Ok(()))?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
        nix::fcntl::openat(&parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o644))?;
        Ok(self.resolve(path, OFlag::O_PATH)?)
    }
}

/// `path` without `.`, `..` and the root, as if `..` at the root stayed there.
///
/// # Errors
/// `ENAMETOOLONG` beyond [`MAX_DEPTH`] components or 4096 bytes.
pub fn lexical(path: &Path) -> io::Result<PathBuf> {
    let mut parts: Vec<OsString> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let clean: PathBuf = parts.iter().collect();
    if parts.len() > MAX_DEPTH || clean.as_os_str().len() > 4096 {
        return Err(Errno::ENAMETOOLONG.into());
    }
    Ok(clean)
}

/// A path that names exactly what a descriptor is open on, for system calls that want paths.
pub fn by_descriptor(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// Sets an extended attribute of what `descriptor` is open on.
pub fn set_xattr(descriptor: &impl AsRawFd, name: &OsStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(by_descriptor(descriptor).into_os_string().as_bytes())?;
    let name = CString::new(name.as_bytes())?;
    // SAFETY: both strings end with a zero byte and live through the call; `value` is `value.len()` readable bytes.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Reads an extended attribute into `value`; returns how many bytes it has.
pub fn xattr(descriptor: &impl AsRawFd, name: &OsStr, value: &mut [u8]) -> io::Result<usize> {
    let path = CString::new(by_descriptor(descriptor).into_os_string().as_bytes())?;
    let name = CString::new(name.as_bytes())?;
    // SAFETY: both strings end with a zero byte and live through the call; `value` is `value.len()` writable bytes.
    let result = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    usize::try_from(Errno::result(result)?).map_err(io::Error::other)
}

/// Writes everything of the file system that holds `folder` to the disk.
pub fn sync_file_system(folder: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call takes nothing else.
    let result = unsafe { libc::syncfs(folder.as_raw_fd()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_never_lead_out() {
        for (path, clean) in [
            ("a/b", "a/b"),
            ("/a//b/.", "a/b"),
            ("../../etc", "etc"),
            ("a/../../b", "b"),
            ("", ""),
        ] {
            assert_eq!(lexical(Path::new(path)).unwrap(), Path::new(clean), "{path}");
        }
        assert!(lexical(Path::new(&"a/".repeat(MAX_DEPTH + 1))).is_err());
    }
}
