//! `k3s backup` and `k3s restore`: the embedded datastore of a server that is stopped, to a file and back.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;

use crate::config::admin::{Backup, Restore};
use crate::store::Store as _;
use crate::store::sql::sqlite::{self, OpenError, RestoreError, Sqlite};

fn log_of(data_dir: &Path) -> PathBuf {
    data_dir.join("server/db/state.db")
}

const RUNNING: &str = "the server runs: stop it first (systemctl stop k3s); its pods go on";

/// Copies the state to a file; the answer is to be printed.
pub async fn back_up(command: Backup) -> anyhow::Result<String> {
    let data_dir = command.data.path();
    let log = log_of(&data_dir);
    if !log.try_exists().with_context(|| log.display().to_string())? {
        bail!(
            "there is no embedded datastore at {} (--data-dir names another place; PostgreSQL, MySQL and etcd are backed up with \
             their own tools)",
            log.display()
        );
    }
    let file = match command.file {
        Some(file) => std::path::absolute(file)?,
        None => log
            .with_file_name("backups")
            .join(format!("{}.db", Timestamp::now().as_second())),
    };
    let store = Sqlite::open_whole(&log).map_err(|error| match error {
        OpenError::InUse { .. } => anyhow!(RUNNING),
        OpenError::Damaged { detail, .. } => anyhow!(
            "the datastore {} is damaged ({detail}): start the server, which repairs what can be repaired, and back up then",
            log.display()
        ),
        other => other.into(),
    })?;
    let made = store.back_up(file).await;
    let closed = store.close().await;
    let made = made?;
    closed.context("the datastore did not close cleanly")?;
    Ok(format!(
        "{}: {} objects as of revision {}, {} bytes, read back and whole.\nTo bring the cluster back with it, its token is needed too: {}\n",
        made.path.display(),
        made.keys,
        made.revision,
        made.bytes,
        data_dir.join("server/token").display()
    ))
}

/// Puts a file in the place of the state; the answer is to be printed.
pub fn restore(command: &Restore) -> anyhow::Result<String> {
    let data_dir = command.data.path();
    let log = log_of(&data_dir);
    let restored = sqlite::restore(&log, &command.file).map_err(|error| match error {
        RestoreError::File(OpenError::InUse { .. }) => anyhow!(RUNNING),
        other => other.into(),
    })?;
    let mut text = format!(
        "restored {} objects as of revision {}; revisions go on from {}, so clients list anew\n",
        restored.keys, restored.revision, restored.goes_on
    );
    if let Some(aside) = restored.aside {
        text.push_str(&format!("the state that was there is kept in {}\n", aside.display()));
    }
    match fs::metadata(data_dir.join("server/token")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            text.push_str("start the server with --token and the token of the cluster that was backed up\n");
        }
        _ => text.push_str("start the server now\n"),
    }
    Ok(text)
}
