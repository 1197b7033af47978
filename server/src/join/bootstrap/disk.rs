//! The record's files on this machine: where they lie, making those of a new cluster, and bringing disk and record together.
//!
//! [`differences`] decides (pure); the rest reads and writes. A file on disk that is newer than the record's is somebody's
//! change, and is not overwritten. Source: K3s v1.36 `pkg/cluster/bootstrap.go` (`ReconcileBootstrapData`), protocol 8.2.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use agent::wire::join::{ca_hash, hex};
use agent::wire::token::Secret;
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::super::files::{self, PRIVATE, PRIVATE_FOLDER};
use super::super::key::PrivateKey;
use super::super::passwd;
use super::super::pki::{self, PkiError};
use super::BootstrapError;
use super::record::{File, Record};

/// Name in the record, file below `<data>/server`. Source: K3s v1.36 `pkg/daemons/config/types.go`
/// (`ControlRuntimeBootstrap`).
const FILES: &[(&str, &str)] = &[
    ("ClientCA", "tls/client-ca.crt"),
    ("ClientCAKey", "tls/client-ca.key"),
    ("ETCDPeerCA", "tls/etcd/peer-ca.crt"),
    ("ETCDPeerCAKey", "tls/etcd/peer-ca.key"),
    ("ETCDServerCA", "tls/etcd/server-ca.crt"),
    ("ETCDServerCAKey", "tls/etcd/server-ca.key"),
    ("EncryptionConfig", "cred/encryption-config.json"),
    ("EncryptionHash", "cred/encryption-state.json"),
    ("IPSECKey", PSK),
    (PASSWD, "cred/passwd"),
    ("RequestHeaderCA", "tls/request-header-ca.crt"),
    ("RequestHeaderCAKey", "tls/request-header-ca.key"),
    ("ServerCA", "tls/server-ca.crt"),
    ("ServerCAKey", "tls/server-ca.key"),
    ("ServiceKey", "tls/service.key"),
];

const PASSWD: &str = "PasswdFile";

/// A key that all nodes are told, below `<data>/server`: 96 hex digits and a line's end.
pub const PSK: &str = "cred/ipsec.psk";

/// Clocks of servers differ; a file that is newer by less is no change of somebody's.
const SKEW_SECONDS: i64 = 3;

/// What is to be done with one file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Difference {
    /// The record's goes to disk.
    Write,
    /// Somebody changed it after the record was made.
    Newer,
}

/// The files that are on disk, all of those that a record can hold.
///
/// # Errors
/// When one is there and cannot be read.
pub fn read(dir: &Path) -> io::Result<Record> {
    let mut found = BTreeMap::new();
    for (name, file) in FILES {
        let path = dir.join(file);
        if let Some(text) = files::read(&path)? {
            let modified = path.metadata().and_then(|metadata| metadata.modified());
            let modified = modified.ok().and_then(|time| Timestamp::try_from(time).ok());
            let content = text.into_bytes();
            found.insert((*name).to_owned(), File { modified, content });
        }
    }
    Ok(Record(found))
}

/// Whether all is on disk by which clients, nodes and service accounts know a cluster.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn has_identity(dir: &Path) -> io::Result<bool> {
    let Record(found) = read(dir)?;
    let authorities = ["ClientCA", "ServerCA", "RequestHeaderCA"];
    let whole = |name: &&str| found.contains_key(*name) && found.contains_key(&format!("{name}Key"));
    Ok(found.contains_key("ServiceKey") && authorities.iter().all(whole))
}

/// What a new cluster needs: what an operator has put on disk, and the rest made afresh. Nothing is written.
///
/// # Errors
/// When the clock cannot be right, or what is on disk does not belong together.
pub fn complete(dir: &Path, token: &Secret, agent_token: &Secret, now: Timestamp) -> Result<Record, BootstrapError> {
    let Record(mut all) = read(dir)?;
    let fresh = |text: &str| File {
        modified: Some(now),
        content: text.as_bytes().to_vec(),
    };
    for (file, prefix) in pki::AUTHORITIES {
        let name = |end: &str| name_of(&format!("tls/{file}.{end}"));
        let (certificate, key) = (name("crt"), name("key"));
        match (all.contains_key(certificate), all.get(key)) {
            (true, Some(_)) => {}
            (true, None) => {
                return Err(PkiError::Unusable {
                    path: dir.join(format!("tls/{file}.key")),
                    why: format!("missing, although {file}.crt is there"),
                }
                .into());
            }
            // A key without its certificate is what a crash left of an earlier start.
            (false, present) => {
                let made = || match present {
                    Some(file) => PrivateKey::from_pem(&String::from_utf8_lossy(&file.content)),
                    None => PrivateKey::generate(),
                };
                let authority = pki::new_authority(file, prefix, now, || Ok(made()?))?;
                all.insert(key.to_owned(), fresh(authority.key().pem()));
                all.insert(certificate.to_owned(), fresh(authority.bundle()));
            }
        }
    }
    if !all.contains_key("ServiceKey") {
        let key = PrivateKey::generate().map_err(PkiError::from)?;
        all.insert("ServiceKey".to_owned(), fresh(key.pem()));
    }
    if !all.contains_key("IPSECKey") {
        all.insert("IPSECKey".to_owned(), fresh(&format!("{}\n", ipsec_key()?)));
    }
    let rows = passwd::wanted_file(dir, token, agent_token)?;
    all.insert(PASSWD.to_owned(), fresh(&rows));
    Ok(Record(all))
}

/// The record's password file.
pub fn passwords(record: &Record) -> Option<&str> {
    let file = record.0.get(PASSWD)?;
    std::str::from_utf8(&file.content).ok()
}

/// The record with another password file.
pub fn with_passwords(record: Record, rows: &str, now: Timestamp) -> Record {
    let Record(mut all) = record;
    let file = File {
        modified: Some(now),
        content: rows.as_bytes().to_vec(),
    };
    all.insert(PASSWD.to_owned(), file);
    Record(all)
}

/// Brings the disk to what the record says. What is the same is not touched.
///
/// # Errors
/// [`BootstrapError::Newer`] when somebody has changed a file; nothing is written then.
pub fn reconcile(dir: &Path, record: &Record) -> Result<(), BootstrapError> {
    let differing = differences(record, &read(dir)?);
    if let Some((name, _)) = differing.iter().find(|(_, what)| **what == Difference::Newer) {
        let path = dir.join(path_of(name).unwrap_or_default());
        return Err(BootstrapError::Newer(path));
    }
    for folder in ["", "cred", "tls", "tls/etcd"] {
        files::folder(&dir.join(folder), PRIVATE_FOLDER)?;
    }
    for name in differing.into_keys() {
        let (Some(path), Some(file)) = (path_of(name), record.0.get(name)) else {
            continue;
        };
        let path = dir.join(path);
        files::write(&path, &file.content, PRIVATE)?;
        if let Some(modified) = file.modified {
            set_modified(&path, modified)?;
        }
    }
    Ok(())
}

/// What differs between record and disk.
///
/// The password file is only ever put where there is none: its rows follow the flags of each server.
fn differences<'a>(record: &'a Record, disk: &Record) -> BTreeMap<&'a str, Difference> {
    let mut found = BTreeMap::new();
    for (name, wanted) in &record.0 {
        let difference = match disk.0.get(name) {
            _ if path_of(name).is_none() => continue,
            None => Difference::Write,
            Some(present) if present.content == wanted.content || name == PASSWD => continue,
            Some(present) if is_newer(present, wanted) => Difference::Newer,
            Some(_) => Difference::Write,
        };
        found.insert(name.as_str(), difference);
    }
    found
}

/// A record without times (of an old K3s) gives way to any file, as it does in K3s.
fn is_newer(present: &File, wanted: &File) -> bool {
    let Some(wanted) = wanted.modified else { return true };
    let Some(present) = present.modified else { return false };
    present.as_second().saturating_sub(wanted.as_second()) >= SKEW_SECONDS
}

fn path_of(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, path)| *path)
}

fn name_of(path: &str) -> &'static str {
    FILES
        .iter()
        .find(|(_, known)| *known == path)
        .map_or("", |(name, _)| *name)
}

fn set_modified(path: &Path, modified: Timestamp) -> io::Result<()> {
    // Before 1970 only a broken clock has made a file.
    let since = Duration::try_from(modified.as_duration()).unwrap_or_default();
    let file = std::fs::File::options().write(true).open(path)?;
    file.set_modified(SystemTime::UNIX_EPOCH + since)
}

/// K3s' flannel once had a use for it; a K3s server that takes over this datastore expects it.
fn ipsec_key() -> Result<String, BootstrapError> {
    let mut bytes = [0; 48];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| BootstrapError::Randomness)?;
    Ok(hex(&bytes))
}

/// The certificates that clients of this cluster trust, as the record has them.
pub fn server_ca(record: &Record) -> Option<&str> {
    let file = record.0.get("ServerCA")?;
    std::str::from_utf8(&file.content).ok()
}

/// The hash that secure tokens of the cluster carry.
pub fn token_hash(record: &Record) -> String {
    ca_hash(server_ca(record).unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn file(content: &str, modified: i64) -> File {
        File {
            modified: Some(Timestamp::from_second(modified).unwrap()),
            content: content.as_bytes().to_vec(),
        }
    }

    fn record(files: &[(&str, File)]) -> Record {
        Record(
            files
                .iter()
                .map(|(name, file)| ((*name).to_owned(), file.clone()))
                .collect(),
        )
    }

    #[test]
    fn the_record_is_written_where_the_disk_has_another_or_none_unless_the_disk_is_newer() {
        let wanted = record(&[("ServerCA", file("a", 100)), ("Unheard", file("x", 100))]);
        for (present, expected) in [
            (vec![], Some(Difference::Write)),
            (vec![("ServerCA", file("a", 900))], None),
            (vec![("ServerCA", file("b", 50))], Some(Difference::Write)),
            (vec![("ServerCA", file("b", 102))], Some(Difference::Write)),
            (vec![("ServerCA", file("b", 103))], Some(Difference::Newer)),
        ] {
            let found = differences(&wanted, &record(&present));
            assert_eq!(found.get("ServerCA").copied(), expected, "{present:?}");
            assert!(!found.contains_key("Unheard"), "a name that has no file here");
        }
        let mut old = wanted;
        old.0.values_mut().for_each(|file| file.modified = None);
        let found = differences(&old, &record(&[("ServerCA", file("b", 1))]));
        assert_eq!(found.get("ServerCA"), Some(&Difference::Newer));
    }

    #[test]
    fn the_password_file_is_put_once_and_then_belongs_to_its_server() {
        let wanted = record(&[(PASSWD, file("a", 100))]);
        assert!(differences(&wanted, &record(&[(PASSWD, file("b", 50))])).is_empty());
        assert_eq!(
            differences(&wanted, &Record::default()).get(PASSWD),
            Some(&Difference::Write)
        );
    }

    #[test]
    fn a_change_of_somebodys_stops_it_before_anything_is_written() {
        let scratch = Scratch::new("bootstrap-newer");
        std::fs::create_dir_all(scratch.0.join("tls")).unwrap();
        std::fs::write(scratch.0.join("tls/server-ca.crt"), "mine").unwrap();
        let wanted = record(&[("ClientCA", file("c", 100)), ("ServerCA", file("s", 100))]);
        let error = reconcile(&scratch.0, &wanted).unwrap_err();
        assert!(error.to_string().contains("tls/server-ca.crt"), "{error}");
        assert!(!scratch.0.join("tls/client-ca.crt").exists());
        std::fs::remove_file(scratch.0.join("tls/server-ca.crt")).unwrap();
        reconcile(&scratch.0, &wanted).unwrap();
        assert_eq!(read(&scratch.0).unwrap(), wanted, "contents and times");
    }
}
