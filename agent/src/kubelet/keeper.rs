//! What is kept on disk for times without a server: pods, and the objects they refer to.
//!
//! Writes happen one after the other, off everybody's way: losing one only means that a start needs a server.

use std::path::PathBuf;

use serde_json::Value;
use tokio::sync::mpsc;

use super::disk;

/// Writes that wait; a pod's start and end make three each.
const QUEUE: usize = 256;

/// Takes what shall be kept.
#[derive(Clone, Debug)]
pub struct Keeper(mpsc::Sender<(PathBuf, Option<Value>)>);

impl Keeper {
    /// Writes a file some time soon.
    pub fn keep(&self, path: PathBuf, value: Value) {
        self.send(path, Some(value));
    }

    /// Removes a file some time soon; one that is not there is fine.
    pub fn forget(&self, path: PathBuf) {
        self.send(path, None);
    }

    fn send(&self, path: PathBuf, value: Option<Value>) {
        if let Err(error) = self.0.try_send((path, value)) {
            tracing::warn!(%error, "not kept for the next start without a server");
        }
    }
}

/// A keeper, and the task that writes what it takes.
pub fn keeper() -> (Keeper, impl Future<Output = ()>) {
    let (to, mut from) = mpsc::channel::<(PathBuf, Option<Value>)>(QUEUE);
    let writing = async move {
        while let Some((path, value)) = from.recv().await {
            let done = match &value {
                Some(value) => disk::write_json(&path, value).await,
                None => disk::remove(&path).await,
            };
            if let Err(error) = done {
                tracing::warn!(path = %path.display(), %error, "not kept for the next start without a server");
            }
        }
    };
    (Keeper(to), writing)
}
