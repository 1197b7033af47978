//! Where things of a pod lie in the run directory, and how its files are written.
//!
//! `pods/UID/`: `sandbox.json`, `shim.sock`, `netns`, `shm/` and `c/NAME.ATTEMPT/` with `plan.json` (what the shim starts),
//! `state.json` (what never changes) and `life.json` (what the shim knows of its end). Files are the truth, so that a shim
//! need not remember what the agent can read; the socket only commands and wakes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A pod's folder.
#[derive(Clone, Debug)]
pub(super) struct PodFolder(PathBuf);

impl PodFolder {
    /// `None` for a UID that is no single, plain path component.
    pub fn new(run: &Path, uid: &str) -> Option<Self> {
        plain(uid).then(|| Self(run.join("pods").join(uid)))
    }

    /// As a shim sees its own: it has changed into it.
    pub fn here(path: &Path) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn sandbox(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    pub fn netns(&self) -> PathBuf {
        self.0.join("netns")
    }

    pub fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    pub fn container(&self, name: &str, attempt: u32) -> Option<ContainerFolder> {
        plain(name).then(|| ContainerFolder(self.0.join("c").join(format!("{name}.{attempt}"))))
    }

    /// All containers with a folder.
    pub fn containers(&self) -> io::Result<Vec<ContainerFolder>> {
        match fs::read_dir(self.0.join("c")) {
            Ok(entries) => entries
                .map(|entry| entry.map(|entry| ContainerFolder(entry.path())))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// The socket's name in a pod's folder.
pub(super) const SOCKET: &str = "shim.sock";

/// A container's folder in its pod's.
#[derive(Clone, Debug)]
pub(super) struct ContainerFolder(PathBuf);

impl ContainerFolder {
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the shim starts.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// Written once by the agent.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Written by the shim.
    pub fn life(&self) -> PathBuf {
        self.0.join("life.json")
    }

    /// Where its file system is mounted, in its own mount namespace only.
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
}

/// Whether `text` can be a file name and nothing else.
fn plain(text: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= 200 && !text.starts_with('.') && text.bytes().all(sound)
}

/// Writes a file so that a reader finds the old one or the new one. Not synced: the run directory is memory.
pub(super) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    fs::write(&tmp, serde_json::to_vec(value)?)?;
    fs::rename(&tmp, path)
}

/// Reads a file of [`write`]; `None` if there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_out_of_the_folder() {
        let run = Path::new("/run/x");
        assert!(PodFolder::new(run, "0b2c-4d").is_some());
        for bad in ["", ".", "..", "a/b", "../x", ".hidden", "a\0b"] {
            assert!(PodFolder::new(run, bad).is_none(), "{bad:?}");
            assert!(PodFolder::here(run).container(bad, 0).is_none(), "{bad:?}");
        }
    }
}
