//! The bootstrap record: what makes servers of one cluster the same cluster, sealed with the cluster's token, as K3s keeps it.
//!
//! Pure: bytes in, bytes out; randomness is an argument. A datastore that K3s filled is read here, and K3s reads what is
//! written here: change nothing in the format. Source: K3s v1.36 `pkg/cluster/encrypt.go` (`encrypt`, `storageKey`) and
//! `pkg/bootstrap/bootstrap.go` (`PathsDataformat`, `File`); section 8.2 of the protocol.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use agent::wire::join::hex;
use agent::wire::token::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::pbkdf2;
use serde::{Deserialize, Serialize};

/// All records lie under this key.
pub const PREFIX: &str = "/bootstrap/";

/// K3s' number of rounds.
const ROUNDS: NonZeroU32 = NonZeroU32::new(4096).unwrap();

/// A file that all servers of a cluster have alike.
#[derive(Clone, Eq, PartialEq)]
pub struct File {
    /// When it was last changed; records of old K3s servers do not say.
    pub modified: Option<Timestamp>,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// It holds keys: never printed.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({} bytes)", self.content.len())
    }
}

/// The files by the names that K3s has for them (`ServerCA`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record(pub BTreeMap<String, File>);

/// Why a record cannot be read although its key is that of the token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreadable {
    /// Not `salt:base64`, or too short.
    #[error("it is not a sealed record")]
    Form,
    /// The seal does not fit: other token, or changed bytes.
    #[error("it was sealed with another token, or it is damaged")]
    Seal,
    /// Opened, but not the JSON that belongs there.
    #[error("its content is not that of a bootstrap record")]
    Content,
}

/// What makes each sealing another one.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    /// For the key.
    pub salt: [u8; 8],
    /// For the cipher; the two together are never used twice.
    pub nonce: [u8; NONCE_LEN],
}

#[derive(Deserialize, Serialize)]
struct Written {
    #[serde(rename = "Timestamp")]
    timestamp: String,
    #[serde(rename = "Content")]
    content: Option<String>,
}

/// The store key of the record of a token.
pub fn key(token: &Secret) -> String {
    let hash = hex(digest(&SHA256, token.expose().as_bytes()).as_ref());
    format!("{PREFIX}{}", hash.get(..12).unwrap_or_default())
}

impl Record {
    /// K3s' JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let written = |file: &File| Written {
            timestamp: file.modified.unwrap_or(Timestamp::UNIX_EPOCH).to_string(),
            content: Some(STANDARD.encode(&file.content)),
        };
        let all: BTreeMap<&String, Written> = self.0.iter().map(|(name, file)| (name, written(file))).collect();
        // A map of texts: it has no way to fail.
        serde_json::to_vec(&all).unwrap_or_default()
    }

    /// Reads K3s' JSON, also of the old form that had contents only.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_json(text: &[u8]) -> Result<Self, Unreadable> {
        let decoded = |content: &str| STANDARD.decode(content).map_err(|_| Unreadable::Content);
        if let Ok(all) = serde_json::from_slice::<BTreeMap<String, Written>>(text) {
            let file = |(name, written): (String, Written)| {
                let content = decoded(written.content.as_deref().unwrap_or_default())?;
                let modified = Some(written.timestamp.parse().map_err(|_| Unreadable::Content)?);
                Ok((name, File { modified, content }))
            };
            return all.into_iter().map(file).collect::<Result<_, _>>().map(Self);
        }
        let all: BTreeMap<String, String> = serde_json::from_slice(text).map_err(|_| Unreadable::Content)?;
        let file = |(name, content): (String, String)| {
            let content = decoded(&content)?;
            Ok((
                name,
                File {
                    modified: None,
                    content,
                },
            ))
        };
        all.into_iter().map(file).collect::<Result<_, _>>().map(Self)
    }

    /// The record as it lies in the datastore.
    ///
    /// # Errors
    /// When ring refuses, which it has no reason to.
    pub fn seal(&self, token: &Secret, chance: Chance) -> Result<String, Unreadable> {
        seal(token, self.to_json(), chance)
    }

    /// Opens what [`Record::seal`], or K3s, has sealed with this token.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn open(token: &Secret, sealed: &[u8]) -> Result<Self, Unreadable> {
        Self::from_json(&open(token, sealed)?)
    }
}

fn seal(token: &Secret, mut plain: Vec<u8>, chance: Chance) -> Result<String, Unreadable> {
    let salt = hex(&chance.salt);
    let nonce = Nonce::assume_unique_for_key(chance.nonce);
    cipher(token, &salt)?
        .seal_in_place_append_tag(nonce, Aad::empty(), &mut plain)
        .map_err(|_| Unreadable::Form)?;
    let sealed = [chance.nonce.as_slice(), &plain].concat();
    Ok(format!("{salt}:{}", STANDARD.encode(sealed)))
}

fn open(token: &Secret, sealed: &[u8]) -> Result<Vec<u8>, Unreadable> {
    let (salt, nonce, mut sealed) = parts(sealed)?;
    let plain = cipher(token, salt)?
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
        .map_err(|_| Unreadable::Seal)?;
    Ok(plain.to_vec())
}

/// Salt, nonce and what the cipher made.
fn parts(sealed: &[u8]) -> Result<(&str, [u8; NONCE_LEN], Vec<u8>), Unreadable> {
    let text = std::str::from_utf8(sealed).map_err(|_| Unreadable::Form)?;
    let (salt, rest) = text.split_once(':').ok_or(Unreadable::Form)?;
    let sealed = STANDARD.decode(rest.trim_end()).map_err(|_| Unreadable::Form)?;
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unreadable::Form)?;
    Ok((salt, *nonce, sealed.to_vec()))
}

/// The salt goes in as the text that is stored, not as the bytes that text spells.
fn cipher(token: &Secret, salt: &str) -> Result<LessSafeKey, Unreadable> {
    let mut key = [0; 32];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA1,
        ROUNDS,
        salt.as_bytes(),
        token.expose().as_bytes(),
        &mut key,
    );
    let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| Unreadable::Form)?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made with Python's `hashlib.pbkdf2_hmac` and `cryptography`'s `AESGCM`.
    const SEALED: &str = "0011223344556677:AAECAwQFBgcICQoLo9CB77Z9uZfs55dEg49WIUr5sdBCSxTcdprk+RaMMwi1jMeXbPEga1ILdDiNdqW3\
        gzRzRdMGfWVk55Ka+S4JdPVQwQtLhNHpRDNi3Is7Y3HtuhCMRB7L+PbNu78=";
    const PLAIN: &str = r#"{"ServiceKey":{"Timestamp":"2026-01-02T03:04:05.678Z","Content":"a2V5Cg=="}}"#;
    const CHANCE: Chance = Chance {
        salt: [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77],
        nonce: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    };

    fn token() -> Secret {
        Secret::new("cluster-secret")
    }

    #[test]
    fn sealing_and_opening_agree_with_another_implementation() {
        let record = Record::from_json(PLAIN.as_bytes()).unwrap();
        assert_eq!(record.0["ServiceKey"].content, b"key\n");
        assert_eq!(record.to_json(), PLAIN.as_bytes());
        assert_eq!(record.seal(&token(), CHANCE).unwrap(), SEALED);
        assert_eq!(Record::open(&token(), SEALED.as_bytes()), Ok(record));
    }

    #[test]
    fn the_key_is_the_beginning_of_the_tokens_hash() {
        assert_eq!(key(&token()), "/bootstrap/2fb6f1c2e31b");
        assert_eq!(key(&Secret::new("")), "/bootstrap/e3b0c44298fc");
    }

    #[test]
    fn another_token_or_a_changed_byte_does_not_open_it() {
        assert_eq!(
            Record::open(&Secret::new("other"), SEALED.as_bytes()),
            Err(Unreadable::Seal)
        );
        let changed = SEALED.replace("o9CB", "o9CC");
        assert_eq!(Record::open(&token(), changed.as_bytes()), Err(Unreadable::Seal));
        for text in ["", "no colon", "salt:***", "salt:AAEC"] {
            assert_eq!(Record::open(&token(), text.as_bytes()), Err(Unreadable::Form), "{text}");
        }
    }

    #[test]
    fn records_of_old_servers_are_read_and_times_of_any_zone() {
        let old = Record::from_json(br#"{"ServerCA":"YQ==","IPSECKey":""}"#).unwrap();
        assert_eq!(old.0["ServerCA"].content, b"a");
        assert_eq!(old.0["ServerCA"].modified, None);
        let zone = br#"{"ServerCA":{"Timestamp":"2026-01-02T04:04:05.5+01:00","Content":null}}"#;
        let zone = Record::from_json(zone).unwrap();
        assert_eq!(
            zone.0["ServerCA"].modified,
            Some("2026-01-02T03:04:05.5Z".parse().unwrap())
        );
        assert!(zone.0["ServerCA"].content.is_empty());
        for text in ["[]", "{\"a\":1}", "{\"a\":\"*\"}", "nonsense"] {
            assert_eq!(Record::from_json(text.as_bytes()), Err(Unreadable::Content), "{text}");
        }
    }

    #[test]
    fn a_file_is_not_printed() {
        let record = Record::from_json(PLAIN.as_bytes()).unwrap();
        assert!(format!("{record:?}").contains("4 bytes"));
        assert!(!format!("{record:?}").contains("key"), "{record:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::from_json(&bytes);
            let _ = parts(&bytes);
            let sealed = format!("00:{}", STANDARD.encode(&bytes));
            prop_assert_eq!(parts(sealed.as_bytes()).is_ok(), bytes.len() >= NONCE_LEN);
        }
    }
}
