//! Small files of the kubelet: replaced whole or not at all, readable by root only.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Runs file work off the agent's one thread.
///
/// # Errors
/// What the work says, or that it was cancelled.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Replaces a file: temporary name, fsync, rename.
///
/// # Errors
/// The kernel's.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, path)
}

/// Writes JSON for later.
///
/// # Errors
/// The kernel's.
pub async fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    let (path, bytes) = (path.to_owned(), serde_json::to_vec(value)?);
    blocking(move || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        replace(&path, &bytes, 0o600)
    })
    .await
}

/// Reads JSON; `None` when there is none or it is damaged.
pub async fn read_json(path: &Path) -> Option<Value> {
    let path = path.to_owned();
    let bytes = blocking(move || fs::read(path)).await.ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// The kernel's.
pub async fn remove(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    blocking(move || absent_is_fine(fs::remove_file(path))).await
}

/// Removes a folder and all in it; one that is not there is fine.
///
/// # Errors
/// The kernel's.
pub async fn remove_folder(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    blocking(move || absent_is_fine(fs::remove_dir_all(path))).await
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
