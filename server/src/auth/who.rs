//! Who is asking: client certificate, password, token, or nobody.

use crate::request::User;

/// Checks user name and password: K3s' `passwd` file, kept by the supervisor.
pub trait Passwords: Send + Sync {
    /// The user, when the password is the one on record.
    fn check(&self, user: &str, password: &str) -> Option<User>;
}
