//! Whose cluster it is that answers: the CA as served, proved by what is known of it.

use std::path::Path;

use bytes::Bytes;

use super::enrol::Ground;
use super::error::JoinError;
use crate::wire::join::ca_hash;

/// Fetches the CA bundle, judges it by the token's hash, and sees that the server has a certificate of it. Without a hash
/// (`expected`) whoever answers is trusted.
pub async fn fetch<G: Ground>(ground: &G, expected: Option<&str>) -> Result<Bytes, JoinError> {
    let ca = ground.ca(None).await?;
    let served = ca_hash(&ca);
    if let Some(expected) = expected
        && expected != served
    {
        return Err(JoinError::CaHash {
            expected: expected.into(),
            served,
        });
    }
    ground.ca(Some(&ca)).await?;
    Ok(ca)
}

/// Sees that the server is of the cluster that this machine knows, by the CA bundle `kept` (PEM) of an earlier enrolment in
/// the file `path`.
///
/// # Errors
/// [`JoinError::OtherCa`] when the server's CA is another one.
pub async fn recognize<G: Ground>(ground: &G, kept: &[u8], path: &Path) -> Result<(), JoinError> {
    let Err(refused) = ground.ca(Some(kept)).await else {
        return Ok(());
    };
    if !matches!(refused, JoinError::Untrusted { .. }) {
        return Err(refused);
    }
    let (kept, served) = (ca_hash(kept), ca_hash(&ground.ca(None).await?));
    match kept == served {
        true => Err(refused),
        false => Err(JoinError::OtherCa {
            kept,
            served,
            path: path.to_owned(),
        }),
    }
}
