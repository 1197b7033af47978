//! `k3s backup` and `k3s restore`: the embedded datastore to a file and back, through the server if it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;

use super::own_node::{self, Here};
use crate::config::admin::{Backup, Restore};
use crate::config::surroundings;
use crate::control::{self, AskError, Request, ask};
use crate::store::Store as _;
use crate::store::sql::sqlite::{self, OpenError, RestoreError, Sqlite};

fn log_of(data_dir: &Path) -> PathBuf {
    data_dir.join("server/db/state.db")
}

/// The password of this machine's node.
const PASSWORD: &str = "/etc/rancher/node/password";

const BUSY: &str =
    "a server has the datastore open and does not answer yet: it starts, or stops. Try again in a moment";

/// Copies the state to a file; the answer is to be printed.
pub async fn back_up(command: Backup) -> anyhow::Result<String> {
    let data_dir = command.data.path();
    let to = command.file.map(std::path::absolute).transpose()?;
    let request = Request::BackUp { to: to.clone() };
    match ask(&data_dir, &request, show).await {
        Err(AskError::Nobody) => back_up_stopped(&data_dir, to).await,
        answer => Ok(answer?),
    }
}

/// To who waits.
fn show(done: usize, of: usize) {
    eprintln!("{done} of {of} objects copied");
}

async fn back_up_stopped(data_dir: &Path, to: Option<PathBuf>) -> anyhow::Result<String> {
    let log = log_of(data_dir);
    if !log.try_exists().with_context(|| log.display().to_string())? {
        bail!(
            "no server runs here, and there is no embedded datastore at {} (--data-dir names another place; PostgreSQL, MySQL and \
             etcd are backed up with their own tools)",
            log.display()
        );
    }
    let store = Sqlite::open_whole(&log).map_err(|error| match error {
        OpenError::InUse { .. } => anyhow!(BUSY),
        OpenError::Damaged { detail, .. } => anyhow!(
            "the datastore {} is damaged ({detail}): start the server, which repairs what can be repaired, and back up then",
            log.display()
        ),
        other => other.into(),
    })?;
    let to = to.unwrap_or_else(|| store.place_for_a_backup(Timestamp::now().as_second()));
    let made = store.back_up(to, Arc::default()).await;
    let closed = store.close().await;
    let made = made?;
    closed.context("the datastore did not close cleanly")?;
    Ok(control::backed_up(&made, data_dir))
}

/// Puts a file in the place of the state; the answer is to be printed.
pub async fn restore(command: Restore) -> anyhow::Result<String> {
    let data_dir = command.data.path();
    let from = std::path::absolute(command.file)?;
    let request = Request::Restore { from: from.clone() };
    match ask(&data_dir, &request, show).await {
        Err(AskError::Nobody) => restore_stopped(&data_dir, &from, command.node_name).await,
        answer => Ok(answer?),
    }
}

async fn restore_stopped(data_dir: &Path, from: &Path, name: Option<String>) -> anyhow::Result<String> {
    let restored = sqlite::restore(&log_of(data_dir), from).map_err(|error| match error {
        RestoreError::File(OpenError::InUse { .. }) => anyhow!(BUSY),
        other => other.into(),
    })?;
    let mut text = control::restored(&restored);
    let around = surroundings();
    // Only root runs a node.
    if around.root {
        let name = name.unwrap_or(around.hostname).to_ascii_lowercase();
        text.push_str(&own_node(&log_of(data_dir), &name, Path::new(PASSWORD)).await);
    }
    match fs::metadata(data_dir.join("server/token")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            text.push_str("start the server with --token and the token of the cluster that was backed up\n");
        }
        _ => text.push_str("start the server now\n"),
    }
    Ok(text)
}

/// The restore is done: what goes wrong here is said, and does not undo it.
async fn own_node(log: &Path, name: &str, password: &Path) -> String {
    let password = fs::read_to_string(password).ok();
    let here = Here {
        name,
        password: password.as_deref().map(str::trim),
    };
    own_node::let_in(log, here).await.unwrap_or_else(|error| {
        format!(
            "whether this machine's own node will be let in could not be seen ({error}): if it is refused, run \"k3s \
             node-password delete {name}\" when the server runs\n"
        )
    })
}
