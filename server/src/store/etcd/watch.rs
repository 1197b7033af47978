//! Following the log: one stream per watcher, opened anew where it broke off.
//!
//! All keys are watched, those of others too: so each revision comes, and whoever waits for one does not wait for ever.
//! That a start is not compacted is asked after the stream is open. Asked before, the deletion that a compaction falls
//! upon could be missed: etcd forgets it, yet takes a watch that begins with it (etcd issue 19179).

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};
use tracing::{info, warn};

use super::client::Client;
use super::grpc::Status;
use super::keys::{self, Change};
use super::link::{Answers, Failure};
use super::message::{EventType, WatchCreateRequest, WatchRequest, WatchResponse, number, signed};
use super::read::{self, PATIENCE};
use crate::store::{Event, StoreError, Tail};

const METHOD: &str = "Watch/Watch";

/// Batches a watcher may be behind; then the stream waits, and etcd with it.
const BEHIND: usize = 1024;
/// A watcher that takes nothing for so long is cut off.
const STUCK: Duration = Duration::from_secs(30);
/// Between attempts to open a stream anew.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(1);
/// Events put together because they came together.
const BATCH: usize = 4096;

/// Puts together what comes, each revision whole and once. Pure.
#[derive(Debug)]
struct Assembly {
    /// All up to here was given.
    last: Revision,
    /// Pieces of an answer that is not complete.
    pieces: Vec<Change>,
}

/// The watch is over.
#[derive(Debug, Eq, PartialEq)]
enum Ended {
    /// What it wants is compacted; this is the oldest that is kept.
    Compacted(Revision),
    /// Why, as etcd says.
    Refused(String),
}

impl Assembly {
    fn new(last: Revision) -> Self {
        Self {
            last,
            pieces: Vec::new(),
        }
    }

    /// Takes an answer in; returns the changes that are whole with it.
    fn take(&mut self, answer: WatchResponse) -> Result<Vec<Change>, Ended> {
        if answer.compact_revision != 0 {
            return Err(Ended::Compacted(Revision::new(number(answer.compact_revision))));
        }
        if answer.canceled {
            return Err(Ended::Refused(answer.cancel_reason));
        }
        let last = self.last;
        let changes = answer.events.into_iter().filter_map(|event| {
            let deleted = event.r#type() == EventType::Delete;
            event.kv.map(|kv| Change { kv, deleted })
        });
        self.pieces.extend(changes.filter(|change| change.revision() > last));
        if answer.fragment {
            return Ok(Vec::new());
        }
        let whole = std::mem::take(&mut self.pieces);
        self.last = whole.last().map_or(last, Change::revision);
        Ok(whole)
    }
}

/// A stream of events.
struct Stream {
    /// Keeps it open.
    _requests: mpsc::Sender<Bytes>,
    answers: Answers,
    assembly: Assembly,
    /// Found behind a batch that was still given. etcd says once that a watch is over, and keeps the call open.
    ended: Option<StreamError>,
}

impl Stream {
    /// Opens one for what follows `from`, and looks whether `from` can still be had. With it comes the revision that was
    /// the newest once the stream was open.
    async fn open(client: &Client, from: Revision) -> Result<(Self, Revision), StoreError> {
        let until = Instant::now() + PATIENCE;
        let opening = async {
            let mut stream = Self::begin(client, from, from.next(), until).await?;
            // The first answer says only that it is open.
            stream.answer().await.map(|_| stream)
        };
        let late = || StreamError::Failure(Failure::Broken(format!("{METHOD}: no answer in time")));
        let opened = timeout_at(until.into(), opening).await.unwrap_or_else(|_| Err(late()));
        match opened {
            Ok(stream) => Ok((stream, read::reachable(client, from).await?)),
            Err(error) => Err(error.explain(client, from).await),
        }
    }

    /// The changes up to `newest`, which is committed: all of them come, if nothing breaks.
    async fn backlog(&mut self, newest: Revision) -> Result<Vec<Change>, StreamError> {
        let mut backlog = Vec::new();
        // etcd begins at revision 1, and nothing was written in that.
        while self.assembly.last < newest && newest > Revision::new(1) {
            let late = |_| StreamError::Failure(Failure::Broken(format!("{METHOD}: the log does not come in time")));
            backlog.extend(timeout(PATIENCE, self.answer()).await.map_err(late)??);
        }
        Ok(backlog)
    }

    async fn begin(client: &Client, last: Revision, start: Revision, until: Instant) -> Result<Self, StreamError> {
        let request = WatchRequest {
            create: Some(WatchCreateRequest {
                key: Bytes::from_static(keys::NOBODYS),
                range_end: Bytes::from_static(keys::ALL),
                start_revision: signed(start.get()),
                fragment: true,
            }),
        };
        let (requests, answers) = client.stream(METHOD, &request, until).await?;
        Ok(Self {
            _requests: requests,
            answers,
            assembly: Assembly::new(last),
            ended: None,
        })
    }

    /// The changes of the next answer: none if it has none.
    async fn answer(&mut self) -> Result<Vec<Change>, StreamError> {
        if let Some(ended) = self.ended.take() {
            return Err(ended);
        }
        let broken = |why: String| StreamError::Failure(Failure::Broken(format!("{METHOD}: {why}")));
        let answer = self
            .answers
            .next()
            .await?
            .ok_or_else(|| broken("etcd ended it".to_owned()))?;
        self.assemble(answer)
    }

    fn assemble(&mut self, answer: Bytes) -> Result<Vec<Change>, StreamError> {
        let answer = WatchResponse::decode(answer);
        let answer = answer.map_err(|error| StreamError::Failure(Failure::Broken(format!("{METHOD}: {error}"))))?;
        self.assembly.take(answer).map_err(StreamError::Ended)
    }

    /// The next changes and all that are here with them.
    async fn batch(&mut self) -> Result<Vec<Change>, StreamError> {
        loop {
            let first = self.answer().await?;
            if !first.is_empty() {
                let (batch, ended) = with_what_is_here(first, || match self.answers.ready()? {
                    Some(answer) => self.assemble(answer).map(Some),
                    None => Ok(None),
                });
                self.ended = ended;
                return Ok(batch);
            }
        }
    }
}

/// A batch with what can be added without waiting, and why no more will come, if that was found: what came before counts.
/// Pure.
fn with_what_is_here<E>(
    mut batch: Vec<Change>,
    mut next: impl FnMut() -> Result<Option<Vec<Change>>, E>,
) -> (Vec<Change>, Option<E>) {
    while batch.len() < BATCH {
        match next() {
            Ok(Some(changes)) => batch.extend(changes),
            Ok(None) => break,
            Err(error) => return (batch, Some(error)),
        }
    }
    (batch, None)
}

/// Why a stream gives no more.
#[derive(Debug)]
enum StreamError {
    Failure(Failure),
    Ended(Ended),
}

impl From<Failure> for StreamError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl StreamError {
    /// What it is to whoever asked for what follows `from`.
    async fn explain(self, client: &Client, from: Revision) -> StoreError {
        match self {
            Self::Ended(Ended::Compacted(oldest)) => StoreError::Compacted { asked: from, oldest },
            Self::Ended(Ended::Refused(why)) => {
                StoreError::Unavailable(format!("etcd ends the watch of all keys: {why}"))
            }
            Self::Failure(failure) => read::explain(client, from, failure).await,
        }
    }
}

/// A watch, and what must run for it to go on.
pub async fn watch(client: Arc<Client>, from: Revision) -> Result<(Tail, impl Future<Output = ()> + Send), StoreError> {
    let (mut stream, newest) = Stream::open(&client, from).await?;
    let backlog = match stream.backlog(newest).await {
        Ok(backlog) => backlog,
        Err(error) => return Err(error.explain(&client, from).await),
    };
    let (sender, tail) = mpsc::channel(BEHIND);
    if !backlog.is_empty() {
        // The channel is empty: there is room.
        let _ = sender.try_send(keys::events(backlog).into());
    }
    Ok((tail, follow(client, stream, sender)))
}

/// Hands events on until the watcher is gone, falls too far behind, or cannot be served without a gap.
async fn follow(client: Arc<Client>, mut stream: Stream, sender: mpsc::Sender<Arc<[Event]>>) {
    let mut last = stream.assembly.last;
    loop {
        let batch = tokio::select! {
            () = sender.closed() => return,
            batch = stream.batch() => batch,
        };
        match batch {
            Ok(batch) => {
                last = batch.last().map_or(last, Change::revision);
                match timeout(STUCK, sender.send(keys::events(batch).into())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        warn!(revision = %last, "a follower of the log takes nothing, and is cut off");
                        return;
                    }
                }
            }
            Err(error) => {
                warn!(revision = %last, error = ?error, "the watch broke off, opening it anew");
                let opened = tokio::select! {
                    () = sender.closed() => return,
                    opened = open_anew(&client, last) => opened,
                };
                match opened {
                    Some(anew) => stream = anew,
                    None => return,
                }
            }
        }
    }
}

/// A stream that goes on after `last`; `None` if that cannot be had any more.
async fn open_anew(client: &Client, last: Revision) -> Option<Stream> {
    let mut delay = RETRY_FIRST;
    loop {
        match Stream::open(client, last).await {
            Ok((stream, _)) => {
                info!(revision = %last, "following the log again");
                return Some(stream);
            }
            Err(error @ (StoreError::Compacted { .. } | StoreError::Future { .. })) => {
                warn!(revision = %last, error = %error, "the log does not go on from here");
                return None;
            }
            Err(
                StoreError::Conflict { .. }
                | StoreError::Overtaken
                | StoreError::Unavailable(_)
                | StoreError::TooLarge(_)
                | StoreError::Full,
            ) => {}
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_LONGEST);
    }
}

/// The revision after `since` and up to `end` in which a key got a value; `end` must be committed.
pub async fn find(
    client: &Client,
    key: &Bytes,
    value: &Bytes,
    since: Revision,
    end: Revision,
    until: Instant,
) -> Result<Option<Revision>, StoreError> {
    let reading = async {
        loop {
            let mut stream = match Stream::open(client, since).await {
                Ok((stream, _)) => stream,
                Err(StoreError::Unavailable(_)) => {
                    tokio::time::sleep(RETRY_FIRST).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            while stream.assembly.last < end {
                let Ok(batch) = stream.batch().await else { break };
                let is_it = |change: &&Change| change.kv.key == *key && change.kv.value == *value && !change.deleted;
                if let Some(change) = batch.iter().find(is_it) {
                    return Ok(Some(change.revision()));
                }
            }
            if stream.assembly.last >= end {
                return Ok(None);
            }
        }
    };
    let late = |_| StoreError::Unavailable("the log could not be read in time".to_owned());
    timeout_at(until.into(), reading).await.map_err(late)?
}

/// The oldest revision that can be had, when `asked` cannot: the answer to a watch from there says it.
pub async fn oldest(client: &Client, asked: Revision) -> Result<Revision, Failure> {
    let until = Instant::now() + PATIENCE;
    let asking = async {
        let start = asked.max(Revision::new(1));
        let mut stream = match Stream::begin(client, Revision::ZERO, start, until).await {
            Ok(stream) => stream,
            Err(StreamError::Failure(failure)) => return Err(failure),
            Err(StreamError::Ended(_)) => return Err(Failure::Broken(format!("{METHOD}: ended"))),
        };
        loop {
            match stream.answer().await {
                Ok(changes) if changes.is_empty() => {}
                Ok(_) => return Ok(start),
                Err(StreamError::Ended(Ended::Compacted(oldest))) => return Ok(oldest),
                Err(StreamError::Ended(Ended::Refused(why))) => {
                    return Err(Failure::Said(Status::refused(why)));
                }
                Err(StreamError::Failure(failure)) => return Err(failure),
            }
        }
    };
    let late = |_| Failure::Broken(format!("{METHOD}: no answer in time"));
    timeout_at(until.into(), asking).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::etcd::message::{KeyValue, WatchedEvent};

    fn answer(revisions: &[i64], fragment: bool) -> WatchResponse {
        let event = |revision: &i64| WatchedEvent {
            r#type: EventType::Put.into(),
            kv: Some(KeyValue {
                key: Bytes::from_static(b"/a"),
                mod_revision: *revision,
                ..KeyValue::default()
            }),
        };
        WatchResponse {
            events: revisions.iter().map(event).collect(),
            fragment,
            ..WatchResponse::default()
        }
    }

    fn revisions(changes: &[Change]) -> Vec<u64> {
        changes.iter().map(|change| change.revision().get()).collect()
    }

    #[test]
    fn an_answer_in_pieces_is_given_when_it_is_whole() {
        let mut assembly = Assembly::new(Revision::new(4));
        assert!(assembly.take(answer(&[5, 6], true)).unwrap().is_empty());
        assert_eq!(
            assembly.last,
            Revision::new(4),
            "a break now must not leave out the pieces"
        );
        assert!(assembly.take(answer(&[6], true)).unwrap().is_empty());
        assert_eq!(
            revisions(&assembly.take(answer(&[6, 7], false)).unwrap()),
            [5, 6, 6, 6, 7]
        );
        assert_eq!(assembly.last, Revision::new(7));
    }

    #[test]
    fn what_was_given_is_not_given_again() {
        let mut assembly = Assembly::new(Revision::new(6));
        assert_eq!(revisions(&assembly.take(answer(&[5, 6, 7, 7], false)).unwrap()), [7, 7]);
        assert!(assembly.take(answer(&[], false)).unwrap().is_empty());
    }

    #[test]
    fn what_came_before_the_end_of_a_watch_is_given_and_then_the_end() {
        let mut assembly = Assembly::new(Revision::new(4));
        let first = assembly.take(answer(&[5], false)).unwrap();
        let compacted = WatchResponse {
            canceled: true,
            compact_revision: 9,
            ..WatchResponse::default()
        };
        let mut here = vec![answer(&[6, 7], false), compacted, answer(&[8], false)].into_iter();
        let (batch, ended) = with_what_is_here(first, || here.next().map(|next| assembly.take(next)).transpose());
        assert_eq!(revisions(&batch), [5, 6, 7]);
        assert_eq!(ended, Some(Ended::Compacted(Revision::new(9))));
        let (batch, ended) = with_what_is_here(batch, || Ok::<_, Ended>(None));
        assert_eq!((batch.len(), ended), (3, None));
    }

    #[test]
    fn a_watch_of_what_is_compacted_says_what_is_kept() {
        let mut assembly = Assembly::new(Revision::new(1));
        let compacted = WatchResponse {
            canceled: true,
            compact_revision: 9,
            ..WatchResponse::default()
        };
        assert_eq!(assembly.take(compacted), Err(Ended::Compacted(Revision::new(9))));
        let refused = WatchResponse {
            canceled: true,
            cancel_reason: "etcdserver: permission denied".to_owned(),
            ..WatchResponse::default()
        };
        assert!(matches!(assembly.take(refused), Err(Ended::Refused(why)) if why.contains("denied")));
    }
}
