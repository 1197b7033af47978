//! For tests of this module.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// An empty folder of its own.
pub fn folder(what: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("amphipod-{what}-{}-{next}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}
