//! Waits until something in a folder changes (inotify).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Events are only counted; what they say is read and forgotten.
const BUFFER: usize = 4096;

/// A watched folder.
#[derive(Debug)]
pub struct Notice(AsyncFd<OwnedFd>);

impl Notice {
    /// Watches the files of `folder`: writing, and coming and going.
    ///
    /// # Errors
    /// The kernel's; a user has a small number of these.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(folder, changes)?;
        // SAFETY: an owned descriptor stays open and the same until it is dropped, which the AsyncFd does last.
        let registered = unsafe { AsyncFd::register(OwnedFd::from(inotify)) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Resolves once something has changed since the last time.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0; BUFFER];
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|inotify| Ok(nix::unistd::read(inotify.get_ref(), &mut buffer)?));
            if let Ok(read) = read {
                return read.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_change_is_noticed_once() {
        let folder = std::env::temp_dir().join(format!("amphipod-notice-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let notice = Notice::of(&folder).unwrap();
        let quiet = Duration::from_millis(20);
        assert!(timeout(quiet, notice.changed()).await.is_err());
        fs::write(folder.join("a"), "x").unwrap();
        notice.changed().await.unwrap();
        assert!(timeout(quiet, notice.changed()).await.is_err(), "it was told already");
        fs::rename(folder.join("a"), folder.join("b")).unwrap();
        notice.changed().await.unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(Notice::of(&folder).is_err());
    }
}
