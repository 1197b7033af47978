//! Real database servers for tests: from Debian's packages, as an unprivileged user, in a folder of their own, gone at the end.
//!
//! Each listens on loopback, or on an address of a test's own network, on a port the kernel chose, with a certificate of an
//! authority of its own. A server is told from others by its process only: tests of several checkouts can run at the same
//! time.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a helper that fails fails its test: everything here may panic"
)]

mod certificates;
pub mod etcd;
mod mariadb;
mod postgres;
mod process;
mod sql;

pub use certificates::Certificates;
pub use mariadb::MariaDb;
pub use postgres::Postgres;
pub use process::{Folder, Server};
pub use sql::SqlServer;

use std::path::Path;

use process::free_port;

/// What `k3s server` is given for a datastore whose certificate it has to verify; `ca` is the authority's.
pub fn flags(endpoint: &str, ca: &Path) -> Vec<String> {
    vec![
        format!("--datastore-endpoint={endpoint}"),
        format!("--datastore-cafile={}", ca.display()),
    ]
}
