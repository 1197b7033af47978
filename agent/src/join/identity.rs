//! Who this machine is: the node's name, its password and, if wanted, its id.
//!
//! Made once and kept: a node whose password changes is refused until a server is told otherwise. A password file that a
//! power failure cut short is therefore not replaced before a server has accepted another password: until then it can be
//! put back. Source: K3s v1.36, `pkg/nodepassword`, `pkg/agent/config` `ensureNodePassword`, `ensureNodeID`.

use std::io;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use tracing::warn;

use super::durable::{self, Disk, SystemDisk};
use crate::config::Secret;
use crate::wire::join::hex;

/// The file, in the node's folder.
const PASSWORD: &str = "password";
const PASSWORD_DIGITS: usize = 32;
const ID_DIGITS: usize = 8;

/// Who this machine is to the cluster.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Final node name: lower case, with the id appended if one is wanted.
    pub node_name: String,
    /// What proves that a later request comes from the same machine.
    pub password: Secret,
    /// The password file, when it is damaged and `password` only stands beside it.
    pub damaged: Option<PathBuf>,
    folder: PathBuf,
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
        Self::open_on(&SystemDisk, folder, name, with_id)
    }

    /// As [`Self::open`], on this disk.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open_on(disk: &dyn Disk, folder: &Path, name: &str, with_id: bool) -> Result<Self, IdentityError> {
        let kept = |source| IdentityError {
            path: folder.to_owned(),
            source,
        };
        durable::create_folder_on(disk, folder, 0o755).map_err(kept)?;
        let path = folder.join(PASSWORD);
        if with_id && disk.has(&path) {
            sound(disk, &folder.join("id")).map_err(kept)?;
        }
        let (password, damaged) = password(disk, &path).map_err(kept)?;
        tighten(disk, &path).map_err(kept)?;
        let node_name = match with_id {
            true => format!(
                "{name}-{}",
                once(disk, &folder.join("id"), ID_DIGITS, 0o644).map_err(kept)?
            ),
            false => name.to_owned(),
        };
        Ok(Self {
            node_name,
            password: Secret::new(password),
            damaged: damaged.then_some(path),
            folder: folder.to_owned(),
        })
    }

    /// With the password as the file has it now: an operator may have put the old one back while this ran. A file that is
    /// gone or damaged changes nothing.
    #[must_use]
    pub fn reread(&self, disk: &dyn Disk) -> Self {
        match read(disk, &self.folder.join(PASSWORD)) {
            Ok(Some(text)) if !is_damaged(&text, PASSWORD_DIGITS) => Self {
                password: Secret::new(text),
                damaged: None,
                ..self.clone()
            },
            Ok(_) | Err(_) => self.clone(),
        }
    }

    /// A server has accepted the password: what was damaged is replaced by it, and kept beside it.
    ///
    /// # Errors
    /// The disk's; a later start finds the same password again.
    pub fn settle(&self, disk: &dyn Disk) -> io::Result<()> {
        let Some(path) = self.damaged.as_ref().filter(|path| disk.has(&candidate(path))) else {
            return Ok(());
        };
        // A start between the two finds no password, and the candidate.
        disk.rename(path, &path.with_extension("damaged"))?;
        durable::rename_on(disk, &candidate(path), path)?;
        warn!(path = %path.display(), "the server knows this node by another password now; the damaged file is kept as .damaged");
        Ok(())
    }
}

/// The password, and whether it only stands beside a damaged file.
fn password(disk: &dyn Disk, path: &Path) -> io::Result<(String, bool)> {
    let beside = candidate(path);
    match read(disk, path)? {
        Some(text) if !is_damaged(&text, PASSWORD_DIGITS) => return Ok((text, false)),
        Some(_) => {}
        None if disk.has(&beside) => {
            durable::rename_on(disk, &beside, path)?;
            return Ok((once(disk, path, PASSWORD_DIGITS, 0o600)?, false));
        }
        None => return Ok((once(disk, path, PASSWORD_DIGITS, 0o600)?, false)),
    }
    warn!(
        path = %path.display(),
        "the node's password is damaged: put the file back from a copy if there is one. Until a server accepts another one, \
         this file is left as it is"
    );
    Ok((once(disk, &beside, PASSWORD_DIGITS, 0o600)?, true))
}

/// A machine that has a password had its name: with another id it would be another node, and the old one's pods would wait
/// for it.
fn sound(disk: &dyn Disk, id: &Path) -> io::Result<()> {
    match read(disk, id)? {
        Some(text) if is_damaged(&text, ID_DIGITS) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file id is damaged, and without it this machine would become another node: put it back (it is what \
             `kubectl get nodes` shows behind the last dash of this node's name), or remove it to join as a new node",
        )),
        Some(_) | None => Ok(()),
    }
}

/// Takes a password file, of which copies and restored backups may be readable by all, back to its owner. A disk that
/// cannot be written keeps no node from starting.
fn tighten(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let mode = disk.mode(path)?;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let (path, mode, tightened) = (path.display(), format!("{mode:o}"), disk.set_mode(path, 0o600));
    match tightened {
        Ok(()) => warn!(%path, mode, "others could read the node's password; now only its owner can"),
        Err(error) => warn!(%path, mode, %error, "others can read the node's password, and its mode cannot be changed"),
    }
    Ok(())
}

fn candidate(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<String>> {
    match disk.read(path) {
        // What is no text is damaged; so is its beginning.
        Ok(bytes) => Ok(Some(String::from_utf8(bytes).unwrap_or_default().trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the file says; random digits, written down first, if it is missing or damaged.
fn once(disk: &dyn Disk, path: &Path, digits: usize, mode: u32) -> io::Result<String> {
    if let Some(text) = read(disk, path)? {
        if !is_damaged(&text, digits) {
            return Ok(text);
        }
        disk.rename(path, &path.with_extension("damaged"))?;
        warn!(
            path = %path.display(),
            "this file was cut short, so a new one is made (the old is kept as .damaged)"
        );
    }
    let fresh = random(digits)?;
    durable::replace_on(disk, path, format!("{fresh}\n").as_bytes(), mode)?;
    Ok(fresh)
}

/// Empty, zeroes, or the beginning of what K3s and we write. Other texts are an operator's own.
fn is_damaged(text: &str, digits: usize) -> bool {
    text.contains('\0') || (text.len() < digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
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
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::scratch::TempDir;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let scratch = TempDir::new("identity");
        let folder = &scratch.path().join("rancher/node");
        let first = Identity::open(folder, "pi", true).unwrap();
        let again = Identity::open(folder, "pi", true).unwrap();
        assert_eq!(first.password, again.password);
        assert_eq!(first.node_name, again.node_name);
        assert_eq!(first.node_name.len(), "pi-".len() + ID_DIGITS);
        assert_eq!(first.password.expose().len(), PASSWORD_DIGITS);
        assert_eq!(Identity::open(folder, "pi", false).unwrap().node_name, "pi");
        let mode = fs::metadata(folder.join("password")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(fs::read_to_string(folder.join("password")).unwrap().ends_with('\n'));
    }

    #[test]
    fn a_damaged_id_does_not_make_a_known_machine_another_node() {
        let scratch = TempDir::new("identity-id");
        let folder = scratch.path();
        let id = folder.join("id");
        fs::write(&id, "").unwrap();
        let first = Identity::open(folder, "pi", true).unwrap();
        assert_eq!(
            first.node_name.len(),
            "pi-".len() + ID_DIGITS,
            "cut at the very first start"
        );
        let kept = fs::read(&id).unwrap();
        fs::write(&id, "01\0").unwrap();
        let refused = Identity::open(folder, "pi", true).unwrap_err().to_string();
        assert!(refused.contains("kubectl get nodes"), "{refused}");
        assert_eq!(fs::read(&id).unwrap(), b"01\0", "left as it is");
        assert_eq!(Identity::open(folder, "pi", false).unwrap().node_name, "pi");
        fs::write(&id, kept).unwrap();
        assert_eq!(Identity::open(folder, "pi", true).unwrap().node_name, first.node_name);
    }

    #[test]
    fn a_password_that_others_can_read_is_taken_back() {
        let scratch = TempDir::new("identity-mode");
        let folder = scratch.path();
        let path = folder.join("password");
        fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        for (mode, expected) in [(0o644, 0o600), (0o660, 0o600), (0o400, 0o400)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Identity::open(folder, "pi", false).unwrap();
            let found = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, expected, "from {mode:o}");
        }
        // A file whose mode nobody can change.
        tighten(&SystemDisk, Path::new("/proc/self/status")).unwrap();
    }

    #[test]
    fn damaged_passwords_are_noticed_and_others_kept() {
        let scratch = TempDir::new("identity");
        let folder = scratch.path();
        let path = folder.join("password");
        for (content, kept) in [
            ("", false),
            (
                "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                false,
            ),
            ("\n", false),
            ("0123456789abcde", false),
            ("\0\0\0\0", false),
            ("0123456789abcdef0123456789abcdef\n", true),
            ("my own", true),
        ] {
            fs::write(&path, content).unwrap();
            let identity = Identity::open(folder, "pi", false).unwrap();
            assert_eq!(identity.password.expose() == content.trim(), kept, "{content:?}");
            assert_eq!(identity.damaged.is_some(), !kept, "{content:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content, "left as it is");
        }
    }

    #[test]
    fn a_damaged_password_is_replaced_once_a_server_has_accepted_another_and_not_before() {
        let scratch = TempDir::new("identity-settle");
        let folder = scratch.path();
        let path = folder.join("password");
        fs::write(&path, "0123").unwrap();
        let first = Identity::open(folder, "pi", false).unwrap();
        let again = Identity::open(folder, "pi", false).unwrap();
        assert_eq!(first.password, again.password, "the same at every start");
        fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        let restored = Identity::open(folder, "pi", false).unwrap();
        assert_eq!(restored.password.expose(), "0123456789abcdef0123456789abcdef");
        assert_eq!(
            first.reread(&SystemDisk).password,
            restored.password,
            "also while it runs"
        );
        restored.settle(&SystemDisk).unwrap();
        assert!(!folder.join("password.damaged").exists(), "nothing to settle");
        for gone in [false, true] {
            fs::write(&path, "0123").unwrap();
            if gone {
                fs::remove_file(&path).unwrap();
            }
            assert_eq!(restored.reread(&SystemDisk).password, restored.password, "gone: {gone}");
        }
        fs::write(&path, "").unwrap();
        let damaged = Identity::open(folder, "pi", false).unwrap();
        damaged.settle(&SystemDisk).unwrap();
        damaged.settle(&SystemDisk).unwrap();
        assert_eq!(fs::read_to_string(folder.join("password.damaged")).unwrap(), "");
        let settled = Identity::open(folder, "pi", false).unwrap();
        assert_eq!(settled.password, damaged.password);
        assert_eq!(settled.damaged, None);
        fs::rename(&path, folder.join("password.new")).unwrap();
        let cut_off = Identity::open(folder, "pi", false).unwrap();
        assert_eq!(cut_off.password, damaged.password, "a stop between the two renames");
    }
}
