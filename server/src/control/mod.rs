//! The running server's control socket: what an administrator of its machine asks of it that is not the cluster's API.
//!
//! `server/control.sock` below the data directory, open to its owner only. One request a connection, as a line of JSON; the
//! answers are lines, too: any number of [`Reply::Progress`], then one of the others. The protocol is this version's own: both
//! ends are one program. Why it is no route of the supervisor: `docs/decisions/0008-*`.

mod ask;
mod serve;
mod text;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use ask::{AskError, ask};
pub use serve::{Desk, Door, MakeFirst, warn_of};
pub use text::{backed_up, restored};

/// What is asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Copy the embedded datastore to a file that is not there yet; none is one in `backups` beside the datastore.
    BackUp {
        /// Absolute.
        to: Option<PathBuf>,
    },
    /// Put a backup in the place of the present state.
    Restore {
        /// Absolute.
        from: PathBuf,
    },
}

/// What is answered.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// So far.
    Progress {
        /// Objects that are copied.
        done: usize,
        /// And all of them.
        of: usize,
    },
    /// It is done; a text for the administrator.
    Done(String),
    /// It is not; why, and what to do.
    Failed(String),
}

/// Longer than any request: paths end at 4096 bytes.
const LONGEST: u64 = 64 << 10;

/// The socket's folder, open, and a path to the socket through it: the address of a socket has room for 107 bytes only.
fn socket(data_dir: &Path) -> io::Result<(File, PathBuf)> {
    let folder = File::open(data_dir.join("server"))?;
    let path = format!("/proc/self/fd/{}/control.sock", folder.as_raw_fd());
    Ok((folder, path.into()))
}
