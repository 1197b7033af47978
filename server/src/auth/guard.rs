//! The authorizer as the server runs it: RBAC kept in step with the cluster.

use agent::wire::status::Status;
use arc_swap::ArcSwap;

use super::may::{Attributes, Grants};
use crate::request::User;

/// Who may do what, as of now.
pub struct Authorizer {
    grants: ArcSwap<Grants>,
}

impl Authorizer {
    /// Knows nothing but `system:masters` until grants are set.
    pub fn new() -> Self {
        Self {
            grants: ArcSwap::from_pointee(Grants::default()),
        }
    }

    /// Whether the user may.
    pub fn allows(&self, user: &User, asked: &Attributes<'_>) -> bool {
        user.groups.iter().any(|group| group == "system:masters") || self.grants.load().allow(user, asked)
    }

    /// Refuses what the user may not.
    ///
    /// # Errors
    /// The 403.
    pub fn demand(&self, user: &User, asked: &Attributes<'_>) -> Result<(), Status> {
        if self.allows(user, asked) {
            return Ok(());
        }
        Err(asked.refusal(user))
    }
}

impl Default for Authorizer {
    fn default() -> Self {
        Self::new()
    }
}
