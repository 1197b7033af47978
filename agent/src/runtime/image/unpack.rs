//! A layer's archive becomes a folder that overlayfs can stack.
//!
//! `tar` only parses; every file operation goes through [`Tree`], because layers are foreign and hostile ones exist.
//! Deleted files become overlay's own marks: a 0:0 device for one name, an attribute for a whole folder.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::archive::{bad, foreign};
use crate::sys::tree::{self, Tree};

/// More members than any real layer has (a full desktop has some 400,000 files).
const MAX_ENTRIES: u64 = 1_000_000;

type Entry<'a, R> = tar::Entry<'a, R>;

/// Unpacks `layer` into the empty folder `into`; returns the bytes of its files.
///
/// `lower`: the folders of the layers below, highest first: a folder that the archive uses without describing it keeps
/// the owner and mode it has there. `max_bytes`: refuse more.
pub fn unpack(layer: impl Read, into: &Path, lower: &[PathBuf], max_bytes: u64) -> io::Result<u64> {
    let tree = Tree::open(into)?;
    let lower = lower
        .iter()
        .map(|path| Tree::open(path))
        .collect::<io::Result<Vec<_>>>()?;
    let mut work = Unpack {
        tree,
        lower,
        bytes: 0,
        max_bytes,
        folders: Vec::new(),
    };
    let mut archive = tar::Archive::new(layer);
    for (count, entry) in (1..).zip(archive.entries().map_err(foreign)?) {
        let mut entry = entry.map_err(foreign)?;
        if count > MAX_ENTRIES {
            return Err(bad("a layer has too many members".into()));
        }
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        work.entry(&mut entry, &path).map_err(|error| at(&path, error))?;
    }
    work.finish()?;
    Ok(work.bytes)
}

struct Unpack {
    tree: Tree,
    lower: Vec<Tree>,
    bytes: u64,
    max_bytes: u64,
    /// Folders and their times, set when nothing changes them any more.
    folders: Vec<(PathBuf, i64)>,
}

impl Unpack {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
        ) {
            return Ok(());
        }
        let clean = tree::lexical(path)?;
        let Some(name) = clean.file_name() else {
            return self.attributes_of_root(entry);
        };
        let parent = self.parent(clean.parent().unwrap_or(Path::new("")))?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return whiteout(&parent, hidden);
        }
        let opened = match kind {
            EntryType::Directory => make_folder(&parent, name)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Some(self.file(&parent, name, entry)?),
            EntryType::Symlink => {
                let target = link_target(entry)?;
                clear(&parent, name)?;
                symlinkat(target.as_os_str(), &parent, name)?;
                None
            }
            // Owner and mode are those of the file linked to.
            EntryType::Link => return self.hard_link(&parent, name, &link_target(entry)?),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                clear(&parent, name)?;
                make_node(&parent, name, entry)?;
                None
            }
            _ => return Err(bad(format!("member of unknown type {:?}", kind.as_byte()))),
        };
        attributes(&parent, name, entry, opened.as_ref())?;
        let time = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
        if kind.is_dir() {
            self.folders.push((clean, time))
        } else {
            set_time(&parent, name, time)?
        }
        Ok(())
    }

    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        self.tree
            .folder(path, &mut |made, parent, name| inherit(&self.lower, made, parent, name))
    }

    fn file<R: Read>(&mut self, parent: &OwnedFd, name: &OsStr, entry: &mut Entry<'_, R>) -> io::Result<OwnedFd> {
        clear(parent, name)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
        let mut file = File::from(openat(parent, name, flags, Mode::from_bits_truncate(0o600))?);
        let room = self.max_bytes.saturating_sub(self.bytes);
        let written = io::copy(&mut entry.take(room.saturating_add(1)), &mut file)?;
        if written > room {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the layer is larger than the room there is",
            ));
        }
        self.bytes += written;
        Ok(file.into())
    }

    fn hard_link(&self, parent: &OwnedFd, name: &OsStr, target: &Path) -> io::Result<()> {
        let target = tree::lexical(target)?;
        let target_name = target.file_name().ok_or(Errno::EINVAL)?;
        let target_parent = target.parent().unwrap_or(Path::new(""));
        let target_parent = self.tree.resolve(target_parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        clear(parent, name)?;
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link is a second name of the link itself.
        Ok(linkat(&target_parent, target_name, parent, name, AtFlags::empty())?)
    }

    fn attributes_of_root<R: Read>(&self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let root = self
            .tree
            .resolve(Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        attributes(&root, OsStr::new("."), entry, Some(&root))
    }

    fn finish(&self) -> io::Result<()> {
        for (path, time) in self.folders.iter().rev() {
            let parent = path.parent().unwrap_or(Path::new(""));
            let (Ok(parent), Some(name)) = (self.tree.resolve(parent, OFlag::O_PATH), path.file_name()) else {
                continue; // a later member replaced it
            };
            match set_time(&parent, name, *time) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Gives a folder that no member describes what it has in the layers below.
fn inherit(lower: &[Tree], made: &Path, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    for layer in lower {
        let Ok(below) = layer.resolve(made, OFlag::O_PATH | OFlag::O_DIRECTORY) else {
            continue;
        };
        let seen = nix::sys::stat::fstat(&below)?;
        let (owner, group) = (Uid::from_raw(seen.st_uid), Gid::from_raw(seen.st_gid));
        fchownat(parent, name, Some(owner), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_bits_truncate(seen.st_mode);
        return Ok(fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?);
    }
    Ok(())
}

/// Takes away what an earlier member of the same layer left under this name.
fn clear(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?),
        Err(errno) => Err(errno.into()),
    }
}

fn make_folder(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let seen = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if SFlag::from_bits_truncate(seen.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
                clear(parent, name)?;
                mkdirat(parent, name, Mode::from_bits_truncate(0o755))?;
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(Some(openat(parent, name, flags, Mode::empty())?))
}

fn make_node<R: Read>(parent: &OwnedFd, name: &OsStr, entry: &Entry<'_, R>) -> io::Result<()> {
    let header = entry.header();
    let kind = match header.entry_type() {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    let device = if kind == SFlag::S_IFIFO {
        0 // some writers leave the numbers of a pipe blank
    } else {
        let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        makedev(major.into(), minor.into())
    };
    Ok(mknodat(parent, name, kind, Mode::from_bits_truncate(0o600), device)?)
}

fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    match hidden {
        b".wh..opq" => {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let folder = openat(parent, ".", flags, Mode::empty())?;
            tree::set_xattr(&folder, OsStr::new("trusted.overlay.opaque"), b"y")
        }
        b"" | b"." | b".." => Err(bad("a mark that deletes nothing".into())),
        // The old AUFS kept its own accounts under such names.
        hidden if hidden.starts_with(b".wh.") => Ok(()),
        hidden => match mknodat(
            parent,
            OsStr::from_bytes(hidden),
            SFlag::S_IFCHR,
            Mode::empty(),
            makedev(0, 0),
        ) {
            // The layer deletes the old file and brings a new one of the same name.
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        },
    }
}

/// Owner, then mode (a change of owner clears set-user-id), then extended attributes (so do capabilities).
fn attributes<R: Read>(
    parent: &OwnedFd,
    name: &OsStr,
    entry: &mut Entry<'_, R>,
    opened: Option<&OwnedFd>,
) -> io::Result<()> {
    let header = entry.header();
    let id = |number: u64| u32::try_from(number).map_err(|_| bad("an owner beyond 32 bits".into()));
    let (owner, group) = (Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?));
    fchownat(parent, name, Some(owner), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !header.entry_type().is_symlink() {
        let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
        fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let Some(opened) = opened else { return Ok(()) };
    let Some(extensions) = entry.pax_extensions()? else {
        return Ok(());
    };
    for extension in extensions {
        let extension = extension?;
        let Some(key) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else {
            continue;
        };
        // Those are overlay's own: a layer that sets them reaches into the layers below.
        if key.starts_with(b"trusted.") {
            continue;
        }
        match tree::set_xattr(opened, OsStr::from_bytes(key), extension.value_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {} // the node's file system has none
            other => other?,
        }
    }
    Ok(())
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let bytes = entry.link_name_bytes().ok_or_else(|| bad("a link to nothing".into()))?;
    Ok(PathBuf::from(OsString::from_vec(bytes.into_owned())))
}

fn set_time(parent: &impl AsFd, name: &OsStr, seconds: i64) -> io::Result<()> {
    // Times before 1970 and after 2106 are no layer's: file systems differ in what they make of them.
    let time = TimeSpec::from_duration(Duration::from_secs(u32::try_from(seconds).unwrap_or(0).into()));
    Ok(utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Says which member it was. A file system that refuses what the member asks for (a name too long, a loop of links)
/// stays the member's fault, one that is full or broken the node's.
fn at(path: &Path, error: io::Error) -> io::Error {
    let kind = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP | Errno::ENAMETOOLONG | Errno::ENOTDIR | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT) => {
            io::ErrorKind::InvalidData
        }
        Some(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EXDEV) => io::ErrorKind::InvalidData,
        Some(_) => error.kind(),
        None if error.kind() == io::ErrorKind::StorageFull => error.kind(),
        None => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, format!("{}: {error}", path.display()))
}
