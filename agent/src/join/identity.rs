//! Who this machine is: the node's name, its password and, if wanted, its id.
//!
//! Made once and kept: a node whose password changes is refused until its Node object is deleted. Source: K3s v1.36,
//! `pkg/nodepassword`, `pkg/agent/config` `ensureNodePassword`, `ensureNodeID`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use tracing::warn;

use super::durable;
use crate::config::Secret;
use crate::wire::join::hex;

const PASSWORD_DIGITS: usize = 32;
const ID_DIGITS: usize = 8;

/// Who this machine is to the cluster.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Final node name: lower case, with the id appended if one is wanted.
    pub node_name: String,
    /// What proves that a later request comes from the same machine.
    pub password: Secret,
}

/// The identity cannot be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the node's identity in {}: {source}", path.display())]
pub struct IdentityError {
    path: PathBuf,
    source: io::Error,
}

impl Identity {
    /// Reads the identity in `folder`, or makes one.
    ///
    /// # Errors
    /// [`IdentityError`]: trying again does not help.
    pub fn open(folder: &Path, name: &str, with_id: bool) -> Result<Self, IdentityError> {
        let kept = |source| IdentityError {
            path: folder.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(kept)?;
        let password = once(&folder.join("password"), PASSWORD_DIGITS, 0o600).map_err(kept)?;
        let node_name = match with_id {
            true => format!("{name}-{}", once(&folder.join("id"), ID_DIGITS, 0o644).map_err(kept)?),
            false => name.to_owned(),
        };
        Ok(Self {
            node_name,
            password: Secret::new(password),
        })
    }
}

/// What the file says; random digits, written down first, if it is missing or damaged.
fn once(path: &Path, digits: usize, mode: u32) -> io::Result<String> {
    let found = match fs::read_to_string(path) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(text) = found {
        if !is_damaged(&text, digits) {
            return Ok(text);
        }
        fs::rename(path, path.with_extension("damaged"))?;
        warn!(
            path = %path.display(),
            "this file was cut short, so a new one is made (the old is kept as .damaged); \
             if the server refuses this node now, delete its Node object"
        );
    }
    let fresh = random(digits)?;
    durable::replace(path, format!("{fresh}\n").as_bytes(), mode)?;
    Ok(fresh)
}

/// Empty, or the beginning of what K3s and we write. Other texts are an operator's own.
fn is_damaged(text: &str, digits: usize) -> bool {
    text.len() < digits && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == 0)
}

fn random(digits: usize) -> io::Result<String> {
    let mut bytes = vec![0; digits / 2];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::join::testing::folder;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let folder = folder("identity").join("rancher/node");
        let first = Identity::open(&folder, "pi", true).unwrap();
        let again = Identity::open(&folder, "pi", true).unwrap();
        assert_eq!(first.password, again.password);
        assert_eq!(first.node_name, again.node_name);
        assert_eq!(first.node_name.len(), "pi-".len() + ID_DIGITS);
        assert_eq!(first.password.expose().len(), PASSWORD_DIGITS);
        assert_eq!(Identity::open(&folder, "pi", false).unwrap().node_name, "pi");
        let mode = fs::metadata(folder.join("password")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(fs::read_to_string(folder.join("password")).unwrap().ends_with('\n'));
    }

    #[test]
    fn damaged_passwords_are_noticed_and_others_kept() {
        let folder = folder("identity");
        let path = folder.join("password");
        for (content, kept) in [
            ("", false),
            ("\n", false),
            ("0123456789abcde", false),
            ("\0\0\0\0", false),
            ("0123456789abcdef0123456789abcdef\n", true),
            ("my own", true),
        ] {
            fs::write(&path, content).unwrap();
            let identity = Identity::open(&folder, "pi", false).unwrap();
            assert_eq!(identity.password.expose() == content.trim(), kept, "{content:?}");
            assert_eq!(folder.join("password.damaged").exists(), !kept, "{content:?}");
            let _ = fs::remove_file(folder.join("password.damaged"));
        }
    }
}
