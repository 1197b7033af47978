//! The pods that the API assigns to this node: listed, then watched, for ever.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::clock;
use super::ports::{Api, ApiFailure, Change, Returns};
use crate::trouble::Trouble;
use crate::wire::object::text;

/// After a failure; doubles up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// Servers end a watch after this; a dead connection is found out by then.
const WATCH_SECONDS: u32 = 300;

/// What the API says.
#[derive(Debug)]
pub enum Update {
    /// These and no others.
    All(Vec<Value>),
    /// This one is new or has changed.
    Set(Value),
    /// This one is no more.
    Gone(Value),
}

/// Sends updates until nobody takes them.
pub async fn feed(api: &dyn Api, node_name: &str, to: mpsc::Sender<Update>) {
    let selector = format!("fieldSelector=spec.nodeName%3D{node_name}");
    let (mut delay, mut trouble, mut returns) = (FIRST_DELAY, Trouble::default(), api.returns());
    loop {
        match follow(api, &selector, &to, &mut delay, &mut trouble, &mut returns).await {
            Ok(()) => {}
            Err(End::Closed) => return,
            Err(End::Failed(error)) => {
                match trouble.is_news(clock::now()) {
                    true => tracing::warn!(%error, retry_ms = delay.as_millis(), "pods are not followed"),
                    false => tracing::debug!(%error, retry_ms = delay.as_millis(), "pods are not followed"),
                }
                returns.pause(delay).await;
                delay = (delay * 2).min(LONGEST_DELAY);
            }
        }
    }
}

enum End {
    Closed,
    Failed(ApiFailure),
}

impl From<ApiFailure> for End {
    fn from(error: ApiFailure) -> Self {
        Self::Failed(error)
    }
}

/// Lists, then watches for as long as that works. `Ok`: list again.
async fn follow(
    api: &dyn Api,
    selector: &str,
    to: &mpsc::Sender<Update>,
    delay: &mut Duration,
    trouble: &mut Trouble,
    returns: &mut Returns,
) -> Result<(), End> {
    let send = |update| async { to.send(update).await.map_err(|_| End::Closed) };
    // Who is not listed is ended: a past in which he was not there yet would do that to the living.
    returns.forget();
    let mut list = api.list(&format!("/api/v1/pods?{selector}")).await?;
    let mut version = text(&list, &["metadata", "resourceVersion"]).to_owned();
    let items = match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => vec![],
    };
    send(Update::All(items)).await?;
    *delay = FIRST_DELAY;
    trouble.ends();
    loop {
        let path = format!(
            "/api/v1/pods?{selector}&watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={WATCH_SECONDS}"
        );
        returns.forget();
        let mut watch = match api.watch(&path).await {
            Ok(watch) => watch,
            Err(error) if error.code() == 410 => return Ok(()),
            Err(error) if error.code() == 0 || error.code() >= 429 => {
                tracing::debug!(%error, "the watch of pods waits for a server");
                returns.pause(*delay).await;
                *delay = (*delay * 2).min(LONGEST_DELAY);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut heard = false;
        while let Some(change) = watch.next().await {
            heard = true;
            let (Change::Set(object) | Change::Gone(object) | Change::Bookmark(object)) = &change else {
                return Ok(());
            };
            let seen = text(object, &["metadata", "resourceVersion"]);
            if !seen.is_empty() {
                version = seen.to_owned();
            }
            match change {
                Change::Set(object) => send(Update::Set(object)).await?,
                Change::Gone(object) => send(Update::Gone(object)).await?,
                Change::Bookmark(_) | Change::Relist => {}
            }
        }
        // A server that ends every watch at once must not be hammered.
        *delay = if heard {
            FIRST_DELAY
        } else {
            (*delay * 2).min(LONGEST_DELAY)
        };
        sleep(*delay).await;
    }
}
