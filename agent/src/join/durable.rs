//! Files that are whole or not there, whenever the power fails: temporary file, fsync, rename, fsync of the folder.
//!
//! K3s writes its node password in place, and a box that loses power then loses its identity. Every file of a join goes
//! through here, and what a server keeps beside its datastore; step by step over a [`Disk`], so that a simulation can lose the
//! power between any two.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What its owner needs for a file to be filled and synced.
const OWNER: u32 = 0o600;

/// What can be done to a disk, each a step of its own: between any two the power may fail.
///
/// Errors are the disk's.
pub trait Disk: Sync {
    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Makes a file, or empties it.
    fn create(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Fills a file that was just made.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Makes the content of a file durable.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Puts a file in the place of another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder in one that is there; that it is there already is no error.
    fn create_folder(&self, folder: &Path, mode: u32) -> io::Result<()>;
    /// Who may do what with a file, such as `0o600`.
    fn mode(&self, path: &Path) -> io::Result<u32>;
    /// Sets that.
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Whether there is such a file or folder.
    fn has(&self, path: &Path) -> bool {
        self.mode(path).is_ok()
    }
}

/// The machine's own.
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        // One that lay about keeps its old mode.
        options.open(path)?.set_permissions(Permissions::from_mode(mode))
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.write_all(content)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.sync(folder)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_folder(&self, folder: &Path, mode: u32) -> io::Result<()> {
        match DirBuilder::new().mode(mode).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
            made => made,
        }
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        Ok(fs::metadata(path)?.permissions().mode() & 0o777)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, Permissions::from_mode(mode))
    }
}

/// Replaces (or makes) a file of this machine, as [`replace_on`].
///
/// # Errors
/// The disk's.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_on(&SystemDisk, path, content, mode)
}

/// Replaces (or makes) a file; readers and a later start find the old content or the new, never a part.
///
/// The folder must exist. `mode` such as `0o600`, whatever the umask says; its owner may be left without a right to write.
///
/// # Errors
/// The disk's. The old file is untouched unless only the last step failed.
pub fn replace_on(disk: &dyn Disk, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path);
    let put = || {
        disk.create(&temporary, mode | OWNER)?;
        disk.write(&temporary, content)?;
        if mode & OWNER != OWNER {
            disk.set_mode(&temporary, mode)?;
        }
        disk.sync(&temporary)?;
        disk.rename(&temporary, path)
    };
    if let Err(error) = put() {
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    sync_folder_of(disk, path)
}

/// Makes a folder of this machine and those above it, for good, as [`create_folder_on`].
///
/// `mode`: of the folder itself; `above`: of each above it that was not there. What is there stays as it is.
///
/// # Errors
/// The disk's, and that it is a file.
pub fn create_folder(folder: &Path, mode: u32, above: u32) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        create_folder_on(&SystemDisk, parent, above)?;
    }
    create_folder_on(&SystemDisk, folder, mode)?;
    // The folder that this process is in has an empty path, too.
    match folder.as_os_str().is_empty() || folder.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// Makes a folder and those above it, for good: a file that is durable in a folder that is not is lost with it.
///
/// `mode` such as `0o755`, of each folder that was not there.
///
/// # Errors
/// The disk's.
pub fn create_folder_on(disk: &dyn Disk, folder: &Path, mode: u32) -> io::Result<()> {
    let named = folder.ancestors().filter(|above| !above.as_os_str().is_empty());
    let missing: Vec<&Path> = named.take_while(|above| !disk.has(above)).collect();
    for made in missing.into_iter().rev() {
        disk.create_folder(made, mode)?;
        sync_folder_of(disk, made)?;
    }
    Ok(())
}

/// Renames within a folder, for good.
///
/// # Errors
/// The disk's. The new name is there unless the first step failed.
pub fn rename_on(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    disk.rename(from, to)?;
    sync_folder_of(disk, to)
}

/// Makes the name of a file, or that it is gone, durable.
///
/// # Errors
/// The disk's.
pub fn sync_folder_of(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(here) if here.as_os_str().is_empty() => disk.sync_folder(Path::new(".")),
        Some(folder) => disk.sync_folder(folder),
        None => Ok(()),
    }
}

/// The same for each write, so that an interrupted one leaves nothing behind for ever.
fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::scratch::TempDir;

    /// The machine's, of which one step after the other is noted; after so many the power is off.
    struct Noted {
        steps: Mutex<Vec<String>>,
        most: usize,
    }

    impl Noted {
        fn until(most: usize) -> Self {
            let steps = Mutex::default();
            Self { steps, most }
        }

        fn steps(&self) -> Vec<String> {
            self.steps.lock().unwrap().clone()
        }

        fn step<T>(&self, what: &str, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
            let mut steps = self.steps.lock().unwrap();
            if steps.len() >= self.most {
                return Err(io::Error::other("no power"));
            }
            steps.push(format!("{what} {}", path.file_name().unwrap().to_str().unwrap()));
            act()
        }
    }

    impl Disk for Noted {
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            self.step("read", path, || SystemDisk.read(path))
        }

        fn create(&self, path: &Path, mode: u32) -> io::Result<()> {
            self.step("create", path, || SystemDisk.create(path, mode))
        }

        fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
            self.step("write", path, || SystemDisk.write(path, content))
        }

        fn sync(&self, path: &Path) -> io::Result<()> {
            self.step("sync", path, || SystemDisk.sync(path))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.step("rename to", to, || SystemDisk.rename(from, to))
        }

        fn sync_folder(&self, folder: &Path) -> io::Result<()> {
            self.step("sync", folder, || SystemDisk.sync_folder(folder))
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            self.step("remove", path, || SystemDisk.remove(path))
        }

        fn create_folder(&self, folder: &Path, mode: u32) -> io::Result<()> {
            self.step("make", folder, || SystemDisk.create_folder(folder, mode))
        }

        fn mode(&self, path: &Path) -> io::Result<u32> {
            SystemDisk.mode(path)
        }

        fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
            self.step("set the mode of", path, || SystemDisk.set_mode(path, mode))
        }
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_old_content_or_the_new_one() {
        let scratch = TempDir::new("durable-crash");
        let path = scratch.path().join("token");
        let whole = [
            "create .token.tmp",
            "write .token.tmp",
            "sync .token.tmp",
            "rename to token",
        ];
        for done in 0..=whole.len() {
            replace(&path, b"old", 0o600).unwrap();
            let disk = Noted::until(done);
            replace_on(&disk, &path, b"the new content", 0o600).unwrap_err();
            assert_eq!(disk.steps(), whole[..done]);
            let expected = if done == whole.len() { "the new content" } else { "old" };
            assert_eq!(fs::read_to_string(&path).unwrap(), expected, "after {done} steps");
            replace(&path, b"the next start", 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "the next start");
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_file_that_its_owner_may_not_write_is_written_all_the_same() {
        let scratch = TempDir::new("durable-read-only");
        let path = scratch.path().join("k3s.yaml");
        for (mode, set) in [(0o400, 1), (0o440, 1), (0o640, 0)] {
            let disk = Noted::until(usize::MAX);
            replace_on(&disk, &path, b"x", mode).unwrap();
            assert_eq!(SystemDisk.mode(&path).unwrap(), mode);
            let set_after = disk.steps().iter().filter(|step| step.starts_with("set")).count();
            assert_eq!(set_after, set, "only then may it not be filled: {mode:o}");
        }
    }

    #[test]
    fn each_folder_that_is_made_is_durable_before_the_next() {
        let scratch = TempDir::new("durable-folders");
        let top = scratch.path().file_name().unwrap().to_str().unwrap();
        let disk = Noted::until(usize::MAX);
        create_folder_on(&disk, &scratch.path().join("a/b"), 0o700).unwrap();
        assert_eq!(disk.steps(), ["make a", &format!("sync {top}"), "make b", "sync a"]);
    }

    #[test]
    fn a_private_folder_may_be_in_others_that_are_not() {
        let scratch = TempDir::new("durable-private");
        let folder = scratch.path().join("var/lib/state");
        for _ in 0..2 {
            create_folder(&folder, 0o700, 0o755).unwrap();
            for (path, mode) in [("var", 0o755), ("var/lib", 0o755), ("var/lib/state", 0o700)] {
                assert_eq!(SystemDisk.mode(&scratch.path().join(path)).unwrap(), mode, "{path}");
            }
        }
        fs::write(folder.join("file"), "").unwrap();
        create_folder(Path::new(""), 0o700, 0o755).unwrap();
        for taken in ["file", "file/below"] {
            create_folder(&folder.join(taken), 0o700, 0o755).unwrap_err();
        }
    }

    #[test]
    fn a_write_leaves_one_file_whatever_lay_about() {
        let scratch = TempDir::new("durable");
        let folder = scratch.path();
        let path = folder.join("password");
        for (litter, content) in [(None, "first"), (Some("half of something longer"), "second")] {
            if let Some(litter) = litter {
                fs::write(temporary(&path), litter).unwrap();
            }
            replace(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(SystemDisk.mode(&path).unwrap(), 0o600);
            assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "{content}");
        }
    }

    #[test]
    fn folders_are_made_where_they_are_missing() {
        let scratch = TempDir::new("durable");
        let folder = scratch.path().join("rancher/node");
        for mode in [0o700, 0o755] {
            create_folder_on(&SystemDisk, &folder, mode).unwrap();
            assert_eq!(
                SystemDisk.mode(&folder).unwrap(),
                0o700,
                "one that is there stays as it is"
            );
            assert_eq!(SystemDisk.mode(folder.parent().unwrap()).unwrap(), 0o700);
        }
        fs::write(folder.join("file"), "").unwrap();
        create_folder_on(&SystemDisk, &folder.join("file/below"), 0o755).unwrap_err();
    }

    #[test]
    fn a_failed_write_leaves_no_litter() {
        let scratch = TempDir::new("durable");
        let folder = scratch.path();
        let path = folder.join("taken");
        fs::create_dir_all(path.join("not-empty")).unwrap();
        replace(&path, b"x", 0o600).unwrap_err();
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }
}
