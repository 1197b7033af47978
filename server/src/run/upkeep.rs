//! What a server does about its datastore beside serving it.

use std::sync::Arc;

use crate::control;
use crate::request::Client;
use crate::store::Store;
use crate::store::endpoint::Endpoint;

/// What backs up a datastore that k3s does not.
pub(super) fn backup_tool(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Sqlite { .. } => "stop it and copy its file",
        Endpoint::Postgres(_) => "use pg_dump and pg_restore, or pg_basebackup, with all servers stopped for a restore",
        Endpoint::Mysql(_) => {
            "use mysqldump or mariadb-dump, and for a restore mysql or mariadb with all servers stopped"
        }
        Endpoint::Etcd(_) => {
            "use etcdctl snapshot save, and for a restore etcdutl snapshot restore with all servers stopped"
        }
    }
}

/// Ready with the reason when the datastore can be served no longer: only a new start finds out what is on the disk.
pub(super) async fn lost(store: &dyn Store) -> String {
    match store.embedded() {
        Some(embedded) => embedded.lost().await,
        None => std::future::pending().await,
    }
}

/// Tells of what had to be repaired when the datastore was opened, where people look who do not read logs.
pub(super) async fn tell_of_a_repair(store: Arc<dyn Store>, client: Client, node: String) {
    let repair = store.embedded().and_then(|embedded| embedded.repair());
    if let Some(repair) = repair {
        control::warn_of(&client, &node, "DatastoreRepaired", repair.to_string()).await;
    }
}
