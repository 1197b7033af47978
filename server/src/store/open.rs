//! From an endpoint to the store behind it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compaction;
use super::endpoint::{Endpoint, Tls};
use super::etcd::{self, Etcd};
use super::sql::mysql;
use super::sql::postgres;
use super::sql::sqlite::{self, Sqlite};
use super::tls::{self, TlsError};
use super::{Store, StoreError};

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded one.
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    /// The thread that was to open it is gone.
    #[error("opening the datastore was cut short")]
    CutShort,
    /// The files for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// etcd.
    #[error("cannot use etcd as datastore: {0}")]
    Etcd(StoreError),
    /// etcd, with the state of a cluster of K3s or Kubernetes in it.
    #[error(
        "this etcd holds a cluster of K3s or Kubernetes already, whose objects this server can neither read nor keep ({key} is \
         in protobuf); nothing in it was changed. Give the server an etcd of its own"
    )]
    EtcdOfOthers {
        /// One of its objects.
        key: String,
    },
    /// A database that is not there; it may come.
    #[error("the datastore does not answer: {detail}")]
    Away {
        /// What happened last.
        detail: String,
    },
    /// Waiting does not help.
    #[error("cannot use the datastore: {detail}")]
    Refused {
        /// Why not. Names no secret.
        detail: String,
    },
}

/// Opens the store that `endpoint` names, and makes it if it is empty.
///
/// `sqlite`: the usual place of the embedded file. In its folder a server also keeps what it has seen of a datastore that it
/// shares with others.
///
/// # Errors
/// [`OpenError`]; nothing in the store has been changed.
pub async fn open(endpoint: &Endpoint, tls: &Tls, sqlite: &Path) -> Result<Arc<dyn Store>, OpenError> {
    let folder = sqlite.parent().unwrap_or(sqlite);
    match endpoint {
        Endpoint::Sqlite { path } => embedded(path.clone().unwrap_or_else(|| sqlite.to_owned())).await,
        Endpoint::Postgres(database) => Ok(Arc::new(postgres::open(database, tls, folder).await?)),
        Endpoint::Mysql(database) => Ok(Arc::new(mysql::open(database, tls, folder).await?)),
        Endpoint::Etcd(endpoints) => {
            let encrypted = endpoints.list.iter().any(|endpoint| endpoint.tls);
            let settings = etcd::Settings {
                endpoints: endpoints.clone(),
                tls: encrypted.then(|| tls::client_config(tls, &[b"h2"])).transpose()?,
                compaction: compaction::EVERY,
            };
            let store = Etcd::open(settings).await.map_err(OpenError::Etcd)?;
            match store.object_of_others().await.map_err(OpenError::Etcd)? {
                Some(key) => Err(OpenError::EtcdOfOthers { key: key.to_string() }),
                None => Ok(Arc::new(store)),
            }
        }
    }
}

async fn embedded(path: PathBuf) -> Result<Arc<dyn Store>, OpenError> {
    // Checks the whole file.
    let opened = tokio::task::spawn_blocking(move || Sqlite::open(&path)).await;
    let store = opened.map_err(|_| OpenError::CutShort)??;
    Ok(Arc::new(store))
}
