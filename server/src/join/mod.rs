//! The far end of a node's joining: the cluster's certificates, tokens and node passwords, and the K3s supervisor routes.

pub mod bootstrap;
pub mod caller;
pub mod certificate;
pub mod csv;
pub mod files;
mod ground;
pub mod issue;
pub mod keeper;
pub mod key;
pub mod node_password;
pub mod passwd;
pub mod pki;
pub mod record;
pub mod reenrol;
pub mod register;
pub mod reserved;
pub mod roll;
pub mod rotation;
pub mod route;
#[cfg(test)]
mod simulation;
pub mod static_files;
pub mod supervisor;
pub mod tls;

pub use supervisor::Supervisor;
