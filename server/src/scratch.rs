//! Folders for tests.

use std::fs;
use std::path::PathBuf;

/// A folder of one test, removed with everything in it.
#[derive(Debug)]
pub(crate) struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty folder whose path no other test has: `name` is this one's.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("amphipod-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
