//! The clock of whatever in the kubelet waits: tokio's, which a test may turn. It never jumps, as the wall clock may.

use std::time::Instant;

/// Now.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
