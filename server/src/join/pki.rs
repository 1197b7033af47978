//! The cluster's certificate authorities and the server's own certificates, in the files and under the names K3s has.
//!
//! [`Pki::load_or_create`] makes what is missing, renews leaves that are old or say the wrong thing, and changes nothing
//! else: a data directory that K3s made is taken over as it is, custom authorities included. What is in a certificate
//! is `certificate`'s, and what the server is called `names`'; this file is the table of them. Before changing a name or a path: nodes and scripts rely on it.

mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::wire::join::ca_hash;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use rcgen::PublicKeyData;
use rustls::pki_types::CertificateDer;

pub use self::names::Names;
use super::certificate::{Authority, BACKDATE_SECONDS, CertificateError, Wanted, sans_of};
use super::files::{self, PRIVATE, PRIVATE_FOLDER};
use super::key::{KeyError, PrivateKey};
use super::tls::Shown;

/// No clock that is right shows less than this (2026-01-01). An authority dated by one that does would soon have ended, so it is
/// dated by this.
const PLAUSIBLE_SINCE: i64 = 1_767_225_600;

/// Why there is no usable PKI.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Restore the file, or move its folder away to begin anew.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Look at the disk.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// A certificate could not be made.
    #[error("cannot make the certificate {name}: {source}")]
    Sign {
        /// Its file name.
        name: String,
        /// Why.
        source: CertificateError,
    },
    /// No randomness, or rustls refuses our own certificate.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

impl From<KeyError> for PkiError {
    fn from(error: KeyError) -> Self {
        Self::Tls(error.to_string())
    }
}

/// A leaf certificate of the server's own and its key.
pub struct Leaf {
    /// Leaf, then its authority; PEM.
    pub chain: String,
    /// Its key.
    pub key: PrivateKey,
}

/// Which of the server's own certificates.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[expect(missing_docs, reason = "the table under it says what each is")]
pub enum Own {
    Admin,
    Supervisor,
    Controller,
    Scheduler,
    ApiServer,
    KubeProxy,
    K3sController,
    CloudController,
    AuthProxy,
    Serving,
}

/// Keys that the server shares with agents too old to make their own (2.4).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[expect(missing_docs, reason = "named as their files")]
pub enum SharedKey {
    ClientKubelet,
    ServingKubelet,
}

/// Which, file, subject, groups.
type Row = (Own, &'static str, &'static str, &'static [&'static str]);

/// Which of them this process shows to others.
const SHOWN: &[Own] = &[Own::Serving, Own::ApiServer, Own::Supervisor];

/// By this name servers know each other: nobody else is given a certificate with it.
pub const SUPERVISOR: &str = "system:k3s-supervisor";

/// File, subject. All are signed by the client authority, except the two that [`authority_of`] names.
const OWN: &[Row] = &[
    (Own::Admin, "client-admin", "system:admin", &["system:masters"]),
    (Own::Supervisor, "client-supervisor", SUPERVISOR, &["system:masters"]),
    (
        Own::Controller,
        "client-controller",
        "system:kube-controller-manager",
        &[],
    ),
    (Own::Scheduler, "client-scheduler", "system:kube-scheduler", &[]),
    (
        Own::ApiServer,
        "client-kube-apiserver",
        "system:apiserver",
        &["system:masters"],
    ),
    (Own::KubeProxy, "client-kube-proxy", "system:kube-proxy", &[]),
    (
        Own::K3sController,
        "client-k3s-controller",
        "system:k3s-controller",
        &[],
    ),
    (
        Own::CloudController,
        "client-k3s-cloud-controller",
        "k3s-cloud-controller-manager",
        &[],
    ),
    (Own::AuthProxy, "client-auth-proxy", "system:auth-proxy", &[]),
    (Own::Serving, "serving-kube-apiserver", "kube-apiserver", &[]),
];

/// The serving certificate's file below `tls/`.
const SERVING: &str = "serving-kube-apiserver.crt";

/// The authorities: file below `tls/` without its ending, and how its name begins.
pub(super) const AUTHORITIES: [(&str, &str); 5] = [
    ("client-ca", "k3s-client-ca"),
    ("server-ca", "k3s-server-ca"),
    ("request-header-ca", "k3s-request-header-ca"),
    ("etcd/server-ca", "etcd-server-ca"),
    ("etcd/peer-ca", "etcd-peer-ca"),
];

const SHARED: &[(SharedKey, &str)] = &[
    (SharedKey::ClientKubelet, "client-kubelet.key"),
    (SharedKey::ServingKubelet, "serving-kubelet.key"),
];

/// The cluster's authorities and this server's certificates.
pub struct Pki {
    client: Authority,
    server: Authority,
    request_header: Authority,
    own: BTreeMap<Own, ArcSwap<Leaf>>,
    /// Those that handshakes show.
    shown: BTreeMap<Own, Arc<Shown>>,
    shared: BTreeMap<SharedKey, PrivateKey>,
    service_key: String,
    tls: PathBuf,
    /// Held while certificates are made: one at a time.
    names: Mutex<Names>,
    /// What they were made for last, or are being made for: to be read while others are made.
    known: ArcSwap<Names>,
    /// What the present serving certificate says.
    serves: ArcSwap<BTreeSet<String>>,
    /// Clients choose what it says.
    any_name: bool,
}

impl Pki {
    /// Reads `<data>/server/tls`, making what is missing and renewing what is old.
    ///
    /// `dir`: `<data>/server`. All files are private (0600), their folder too (0700).
    ///
    /// # Errors
    /// [`PkiError`] names the file and what to do about it.
    pub fn load_or_create(dir: &Path, names: &Names, now: Timestamp) -> Result<Self, PkiError> {
        let tls = dir.join("tls");
        files::folder(dir, PRIVATE_FOLDER)?;
        files::folder(&tls, PRIVATE_FOLDER)?;
        files::folder(&tls.join("etcd"), PRIVATE_FOLDER)?;
        let [client, server, request_header, etcd_server, etcd_peer] = AUTHORITIES;
        let authority = |(file, prefix)| load_authority(&tls, file, prefix, now);
        let (client, server, request_header) = (authority(client)?, authority(server)?, authority(request_header)?);
        // Nobody here uses these two; a K3s server that takes this directory over does.
        authority(etcd_server)?;
        authority(etcd_peer)?;
        files::write_if_changed(&tls.join("client-ca.nochain.crt"), client.first().as_bytes(), PRIVATE)?;
        files::write_if_changed(&tls.join("server-ca.nochain.crt"), server.first().as_bytes(), PRIVATE)?;

        let mut shared = BTreeMap::new();
        for &(which, file) in SHARED {
            shared.insert(which, load_key(&tls.join(file))?);
        }
        let service_key = load_service_key(&tls.join("service.key"))?;
        let mut pki = Self {
            client,
            server,
            request_header,
            own: BTreeMap::new(),
            shown: BTreeMap::new(),
            shared,
            service_key,
            serves: ArcSwap::default(),
            any_name: names.any_name,
            names: Mutex::default(),
            known: ArcSwap::default(),
            tls,
        };
        let mut names = names.clone();
        names.remember(sans_of(&files::read(&pki.tls.join(SERVING))?.unwrap_or_default()));
        let floor = pki.left_floor()?;
        for row in OWN {
            let leaf = pki.load(row, &names, now, floor)?;
            if SHOWN.contains(&row.0) {
                pki.shown.insert(row.0, Arc::new(Shown::new(&leaf)?));
            }
            pki.own.insert(row.0, ArcSwap::from_pointee(leaf));
        }
        pki.serves.store(Arc::new(
            pki.own(Own::Serving)
                .map_or_else(BTreeSet::new, |leaf| sans_of(&leaf.chain)),
        ));
        pki.known.store(Arc::new(names.clone()));
        pki.names = Mutex::new(names);
        Ok(pki)
    }

    /// Signs those of the server's own certificates anew that are old, or whose files were taken away, while everything
    /// runs: the next handshake shows the new one, open connections go on. Answers which.
    ///
    /// # Errors
    /// [`PkiError`] names the file; what was renewed before it stays renewed.
    pub fn renew(&self, now: Timestamp) -> Result<Vec<Own>, PkiError> {
        self.renew_for(&self.held_names(), now)
    }

    /// This machine has these addresses now; `stays`: which further names are still true. As [`Pki::renew`].
    ///
    /// # Errors
    /// As [`Pki::renew`].
    pub fn readdress(
        &self,
        addresses: Vec<IpAddr>,
        stays: fn(&str) -> bool,
        now: Timestamp,
    ) -> Result<Vec<Own>, PkiError> {
        let mut names = self.held_names();
        names.addresses = addresses;
        names.stays = Some(stays);
        names.forget();
        self.known.store(Arc::new(names.clone()));
        self.renew_for(&names, now)
    }

    /// What the serving certificate lacks for a client that came to this address of this machine, and says that it looks for
    /// this name.
    pub fn lacks(&self, address: IpAddr, name: Option<&str>) -> Vec<String> {
        let serves = self.serves.load();
        let shown = names::shown(address, name.filter(|_| self.any_name));
        shown.filter(|name| !serves.contains(name)).collect()
    }

    /// Puts these names into the serving certificate, as far as there is room: as [`Pki::renew`].
    ///
    /// # Errors
    /// As [`Pki::renew`].
    pub fn meet(&self, lacking: Vec<String>, now: Timestamp) -> Result<Vec<Own>, PkiError> {
        let mut names = self.held_names();
        if !names.has_room() {
            return Ok(Vec::new());
        }
        names.meet(lacking);
        self.known.store(Arc::new(names.clone()));
        self.renew_for(&names, now)
    }

    fn held_names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew_for(&self, names: &Names, now: Timestamp) -> Result<Vec<Own>, PkiError> {
        let mut renewed = Vec::new();
        let floor = self.floor();
        for row in OWN {
            let Some(held) = self.own.get(&row.0) else { continue };
            let leaf = self.load(row, names, now, floor)?;
            if leaf.chain == held.load().chain {
                continue;
            }
            if let Some(shown) = self.shown.get(&row.0) {
                shown.replace(&leaf)?;
            }
            if row.0 == Own::Serving {
                self.serves.store(Arc::new(sans_of(&leaf.chain)));
            }
            held.store(Arc::new(leaf));
            renewed.push(row.0);
        }
        Ok(renewed)
    }

    fn load(&self, row: &Row, names: &Names, now: Timestamp, floor: i64) -> Result<Leaf, PkiError> {
        let &(which, file, name, groups) = row;
        let wanted = match which {
            Own::Serving => Wanted::server(name, names.all()),
            _ => Wanted::client(name, groups),
        };
        load_leaf(&self.tls, file, self.authority_of(which), &wanted, now, floor)
    }

    const fn authority_of(&self, which: Own) -> &Authority {
        match which {
            Own::Serving => &self.server,
            Own::AuthProxy => &self.request_header,
            _ => &self.client,
        }
    }

    /// What time it is at least, in seconds since 1970: the authorities exist, and this server has signed its own certificates.
    /// None of these ends before the one that it replaces, so a clock that steps back does not make it forget.
    pub fn floor(&self) -> i64 {
        let own = self.own.iter().map(|(which, leaf)| (*which, leaf.load()));
        self.least(own.filter_map(|(which, leaf)| self.authority_of(which).signed(&leaf.chain)))
    }

    /// [`Pki::floor`] by what an earlier run has left on disk.
    fn left_floor(&self) -> Result<i64, PkiError> {
        let mut signed = Vec::new();
        for &(which, file, ..) in OWN {
            let chain = files::read(&self.tls.join(format!("{file}.crt")))?;
            signed.extend(chain.and_then(|chain| self.authority_of(which).signed(&chain)));
        }
        Ok(self.least(signed.into_iter()))
    }

    fn least(&self, signed: impl Iterator<Item = i64>) -> i64 {
        let authorities = [&self.client, &self.server, &self.request_header].map(Authority::since);
        authorities.into_iter().chain(signed).fold(PLAUSIBLE_SINCE, i64::max)
    }

    /// Whether the clock that shows `now` is behind: what this server has signed is younger. It is, too, when this was signed
    /// by a clock that was ahead; `k3s certificate rotate` makes an end of that.
    pub fn is_behind(&self, now: Timestamp) -> bool {
        now.as_second() + BACKDATE_SECONDS < self.floor()
    }

    /// By which names this server is known now. Waits for nobody: keys are made and files synced while the names are held.
    pub fn names(&self) -> Arc<Names> {
        self.known.load_full()
    }

    /// `client-ca.crt`, byte for byte: what client certificates are verified with.
    pub fn client_ca_pem(&self) -> &str {
        self.client.bundle()
    }

    /// `server-ca.crt`, byte for byte: what `/cacerts` answers.
    pub fn server_ca_pem(&self) -> &str {
        self.server.bundle()
    }

    /// `request-header-ca.crt`.
    pub fn request_header_ca_pem(&self) -> &str {
        self.request_header.bundle()
    }

    /// The hash that secure tokens carry (1.4).
    pub fn token_hash(&self) -> String {
        ca_hash(self.server.bundle().as_bytes())
    }

    /// `service.key`, PEM, possibly several keys: the first signs service-account tokens, all verify them.
    pub fn service_key_pem(&self) -> &str {
        &self.service_key
    }

    /// One of the server's own certificates.
    pub fn own(&self, which: Own) -> Option<Arc<Leaf>> {
        self.own.get(&which).map(ArcSwap::load_full)
    }

    pub(super) fn shown(&self, which: Own) -> Option<Arc<Shown>> {
        self.shown.get(&which).cloned()
    }

    /// A client certificate for this key, valid for a year and, if the clock is behind, for what it is behind: leaf and authority, PEM.
    ///
    /// # Errors
    /// When the name cannot be put into a certificate.
    pub fn sign_client(&self, wanted: &Wanted, key: &impl PublicKeyData, now: Timestamp) -> Result<String, PkiError> {
        sign(&self.client, wanted, key, now, self.floor())
    }

    /// A serving certificate for this key, valid as [`Pki::sign_client`]'s: leaf and authority, PEM.
    ///
    /// # Errors
    /// When a name cannot be put into a certificate.
    pub fn sign_serving(&self, wanted: &Wanted, key: &impl PublicKeyData, now: Timestamp) -> Result<String, PkiError> {
        sign(&self.server, wanted, key, now, self.floor())
    }

    /// A key shared with old agents.
    pub fn shared_key(&self, which: SharedKey) -> Option<&PrivateKey> {
        self.shared.get(&which)
    }

    pub(super) fn client_authority(&self) -> &[CertificateDer<'static>] {
        self.client.chain()
    }

    pub(super) fn server_authority(&self) -> &[CertificateDer<'static>] {
        self.server.chain()
    }
}

fn sign(
    authority: &Authority,
    wanted: &Wanted,
    key: &impl PublicKeyData,
    now: Timestamp,
    floor: i64,
) -> Result<String, PkiError> {
    let fault = |source| PkiError::Sign {
        name: wanted.name.clone(),
        source,
    };
    authority.sign(wanted, key, now, floor).map_err(fault)
}

/// The key is written before its certificate, so a crash between the two leaves a key without certificate, which is
/// completed here; a certificate without key is somebody's mistake and no authority is made over it.
fn load_authority(tls: &Path, file: &str, prefix: &str, now: Timestamp) -> Result<Authority, PkiError> {
    let (crt, key_path) = (tls.join(format!("{file}.crt")), tls.join(format!("{file}.key")));
    let unusable = |path: &Path, why: String| PkiError::Unusable {
        path: path.to_owned(),
        why,
    };
    let bundle = files::read(&crt)?;
    if let Some(bundle) = bundle {
        let text = files::read(&key_path)?;
        let text = text.ok_or_else(|| unusable(&key_path, format!("missing, although {file}.crt is there")))?;
        let key = PrivateKey::from_pem(&text).map_err(|error| unusable(&key_path, error.to_string()))?;
        return Authority::load(bundle, key).map_err(|error| unusable(&crt, error.to_string()));
    }
    let authority = new_authority(file, prefix, now, || load_key(&key_path))?;
    files::write(&crt, authority.bundle().as_bytes(), PRIVATE)?;
    Ok(authority)
}

/// Whether the clock shows what it may show; until it does, the first start waits a little.
pub fn is_plausible(now: Timestamp) -> bool {
    now.as_second() >= PLAUSIBLE_SINCE
}

/// Whether `<data>/server` has no authorities yet, so that they will be dated by the clock.
pub fn is_new(dir: &Path) -> bool {
    let there = |(file, _)| dir.join("tls").join(format!("{file}.crt")).exists();
    !AUTHORITIES.into_iter().any(there)
}

/// A new authority over a key.
pub(super) fn new_authority(
    file: &str,
    prefix: &str,
    now: Timestamp,
    key: impl FnOnce() -> Result<PrivateKey, PkiError>,
) -> Result<Authority, PkiError> {
    let floor = Timestamp::from_second(PLAUSIBLE_SINCE).unwrap_or(now);
    Authority::create(prefix, key()?, now.max(floor)).map_err(|source| PkiError::Sign {
        name: file.to_owned(),
        source,
    })
}

fn load_leaf(
    tls: &Path,
    file: &str,
    authority: &Authority,
    wanted: &Wanted,
    now: Timestamp,
    floor: i64,
) -> Result<Leaf, PkiError> {
    let crt = tls.join(format!("{file}.crt"));
    let key = load_key(&tls.join(format!("{file}.key")))?;
    // An impossible clock, or one before the authority's beginning, says nothing of age. Any other may be right: if a leaf begins
    // later, a clock was ahead when it was signed, or this one is behind, and the new one is good in both cases.
    let surely_behind = now.as_second() < PLAUSIBLE_SINCE.max(authority.since());
    let judged = match surely_behind {
        true => Timestamp::from_second(floor).unwrap_or(now),
        false => now,
    };
    match files::read(&crt)? {
        Some(chain) if authority.keeps(&chain, wanted, &key, judged) => return Ok(Leaf { chain, key }),
        _ => {}
    }
    let chain = sign(authority, wanted, key.pair(), now, floor)?;
    files::write(&crt, chain.as_bytes(), PRIVATE)?;
    Ok(Leaf { chain, key })
}

/// Reads a key or makes one; one that cannot be read is an error, because certificates in use may hang on it.
fn load_key(path: &Path) -> Result<PrivateKey, PkiError> {
    if let Some(text) = files::read(path)? {
        let unusable = |error: KeyError| PkiError::Unusable {
            path: path.to_owned(),
            why: error.to_string(),
        };
        return PrivateKey::from_pem(&text).map_err(unusable);
    }
    let key = PrivateKey::generate()?;
    files::write(path, key.pem().as_bytes(), PRIVATE)?;
    Ok(key)
}

/// `docs/decisions/0002-service-account-keys.md` says why this one is not RSA.
fn load_service_key(path: &Path) -> Result<String, PkiError> {
    match files::read(path)? {
        Some(text) if text.trim().is_empty() => Err(PkiError::Unusable {
            path: path.to_owned(),
            why: "empty".to_owned(),
        }),
        Some(text) => Ok(text),
        None => {
            let key = PrivateKey::generate()?;
            files::write(path, key.pem().as_bytes(), PRIVATE)?;
            Ok(key.pem().to_owned())
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
