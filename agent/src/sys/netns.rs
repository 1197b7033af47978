//! Work inside another network namespace, on a thread of its own: a namespace belongs to a thread, and a runtime's threads
//! are shared.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a new thread that has entered the network namespace at `path`.
///
/// # Errors
/// When the namespace cannot be opened or entered, or no thread can be had; else what `work` returns.
pub fn inside<T: Send + 'static>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let namespace = File::open(path)?;
    let thread = thread::Builder::new()
        .name("netns".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        })?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread inside a network namespace panicked")))
}
