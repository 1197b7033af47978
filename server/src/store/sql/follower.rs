//! The one follower of a server: keeps the log's tail flowing to the watchers, whoever wrote it, and lets keys expire.
//!
//! It knows a position, and what comes next is the row with the next revision: from this server's writer if that is what
//! it just committed, else read from the log. While the database is away the watchers wait; if what comes next is gone
//! for good they are cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use super::super::tails::Tails;
use super::super::{Change, Event, Expect, StoreError, Tail, Write};
use super::connector::{Common, Connector, within};
use super::database::{Database, Fault, Link, Mortal, Page, Polling, Row};
use super::expiry::Expiry;
use super::has_closed;
use super::history::{Seen, Step, step};
use super::writer::{Committed, Queued};

/// Rows read at once: some hundred kilobytes as a rule.
const PAGE: u32 = 256;
/// The database is worth a look often for so long after the last write.
const BUSY: Duration = Duration::from_secs(30);
/// A database may tell of writes that did not before, and the other way round.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);
/// Keys that expire at once.
const EXPIRE: usize = 256;

/// Somebody wants to follow.
#[derive(Debug)]
pub struct Watch {
    /// What he has seen.
    pub from: Revision,
    /// To whom.
    pub reply: oneshot::Sender<Result<Tail, StoreError>>,
}

/// The follower.
#[derive(Debug)]
pub struct Follower<D: Database> {
    connector: Connector<D>,
    stream: Stream,
    writer: mpsc::Sender<Queued>,
    /// Of the open connection, which listens then.
    polling: Polling,
    listened: Instant,
    read: Instant,
}

/// What flows, and where it has got to.
#[derive(Debug)]
struct Stream {
    common: Arc<Common>,
    tails: Tails,
    position: Revision,
    expiry: Expiry,
    written: Instant,
}

impl Stream {
    /// These rows come next.
    fn deliver(&mut self, rows: Vec<Row>) {
        let (Some(last), now) = (rows.last(), Instant::now()) else {
            return;
        };
        self.position = last.event.revision;
        self.written = now;
        self.common.saw(&rows);
        for row in &rows {
            self.expiry.note(row, self.common.is_own(row.stamp), now);
        }
        self.tails.send(rows.into_iter().map(|row| row.event).collect());
    }

    /// What came next is gone.
    fn begin_anew(&mut self, after: Seen, mortals: Vec<Mortal>) {
        self.tails = Tails::default();
        self.position = after.revision;
        self.common.begin_anew(after);
        self.expiry.load(mortals, Instant::now());
    }
}

impl<D: Database> Follower<D> {
    /// Begins at the present end of the log.
    pub async fn begin(database: Arc<D>, common: Arc<Common>, writer: mpsc::Sender<Queued>) -> Result<Self, Fault> {
        let now = Instant::now();
        let mut connector = Connector::new(database, Arc::clone(&common));
        let link = connector.link().await?;
        let begin = async {
            let polling = link.listen().await?;
            let newest = end(link).await?;
            Ok((polling, newest, link.mortals().await?))
        };
        let (polling, newest, mortals) = within(begin).await?;
        let mut stream = Stream {
            common,
            tails: Tails::default(),
            position: newest.revision,
            expiry: Expiry::default(),
            written: now,
        };
        stream.begin_anew(newest, mortals);
        Ok(Self {
            connector,
            stream,
            writer,
            polling,
            listened: now,
            read: now,
        })
    }

    /// Follows until `closed`; the watches end with it.
    pub async fn run(
        mut self,
        mut watches: mpsc::Receiver<Watch>,
        mut own: mpsc::Receiver<Committed>,
        mut closed: watch::Receiver<bool>,
    ) {
        let mut hints = self.stream.common.hints();
        loop {
            let (poll, expiry) = (self.next_read(), self.stream.expiry.next());
            tokio::select! {
                () = has_closed(&mut closed) => return,
                committed = own.recv() => match committed {
                    Some(committed) => self.take(committed).await,
                    None => return,
                },
                watch = watches.recv() => match watch {
                    Some(Watch { from, reply }) => {
                        let tail = self.watch(from).await;
                        // Nobody waits any more if that fails.
                        let _ = reply.send(tail);
                    }
                    None => return,
                },
                // The sender lives in `common`: it never ends.
                Ok(()) = hints.changed() => {
                    if *hints.borrow_and_update() > self.stream.position {
                        self.read_on().await;
                    }
                }
                () = told(self.connector.open()) => self.read_on().await,
                () = sleep_until(Some(poll)) => self.read_on().await,
                () = sleep_until(expiry) => self.expire(),
            }
        }
    }

    /// When to look by ourselves.
    fn next_read(&mut self) -> Instant {
        if !self.connector.is_open() {
            return self.connector.retry_at().unwrap_or(self.read);
        }
        let busy = self.stream.written.elapsed() < BUSY;
        self.read + if busy { self.polling.busy } else { self.polling.idle }
    }

    /// What this server's writer has committed.
    async fn take(&mut self, Committed { before, rows }: Committed) {
        let end = rows.last().map_or(before, |row| row.event.revision);
        if before == self.stream.position {
            self.stream.deliver(rows);
        } else if end > self.stream.position {
            self.read_on().await;
        }
    }

    async fn read_on(&mut self) {
        if let Err(fault) = self.catch_up().await {
            self.connector.lose(&fault);
        }
    }

    /// Reads and delivers what is new.
    async fn catch_up(&mut self) -> Result<(), Fault> {
        self.read = Instant::now();
        let listens = self.connector.is_open();
        let link = self.connector.link().await?;
        if !listens || self.listened.elapsed() >= LISTEN_AGAIN {
            self.polling = within(link.listen()).await?;
            self.listened = Instant::now();
        }
        loop {
            let position = self.stream.position;
            let page = within(link.page(position, PAGE)).await?;
            match step(position, &page) {
                Step::Cut => {
                    let newest = within(end(link)).await?;
                    warn!(%position, newest = %newest.revision, "what comes next in the log is gone: watches begin anew");
                    let mortals = within(link.mortals()).await?;
                    self.stream.begin_anew(newest, mortals);
                }
                Step::GoOn => {
                    let last = is_last(&page);
                    self.stream.deliver(page.rows);
                    if last {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Tries a second time on a new connection if the first was lost while it lay idle.
    async fn watch(&mut self, from: Revision) -> Result<Tail, StoreError> {
        let mut idle = self.connector.is_open();
        loop {
            match self.try_watch(from).await {
                Ok(tail) => return tail,
                Err(fault) => {
                    self.connector.lose(&fault);
                    if !matches!(fault, Fault::Lost(_)) || !std::mem::take(&mut idle) {
                        return Err(fault.into());
                    }
                }
            }
        }
    }

    async fn try_watch(&mut self, from: Revision) -> Result<Result<Tail, StoreError>, Fault> {
        self.catch_up().await?;
        let current = self.stream.position;
        if from > current {
            return Ok(Err(StoreError::Future { asked: from, current }));
        }
        let link = self.connector.link().await?;
        let (mut at, mut backlog) = (from, Vec::new());
        loop {
            let page = within(link.page(at, PAGE)).await?;
            let (oldest, last) = (page.marks.floor(), is_last(&page));
            if from < oldest {
                return Ok(Err(StoreError::Compacted { asked: from, oldest }));
            }
            let events = page.rows.into_iter().map(|row| row.event);
            backlog.extend(events.take_while(|event| event.revision <= current));
            at = backlog.last().map_or(at, |event: &Event| event.revision);
            if last || at >= current {
                return Ok(Ok(self.stream.tails.add(backlog)));
            }
        }
    }

    /// Asks the writer to delete what is due. It says no if somebody was quicker.
    fn expire(&mut self) {
        for (key, revision) in self.stream.expiry.take(Instant::now(), EXPIRE) {
            let write = Write::new(key, Expect::At(revision), Change::Delete);
            // If there is no room now it is due again later.
            let _ = self.writer.try_send(Queued { write, reply: None });
        }
    }
}

/// The log's last row, as far as there is one.
async fn end<L: Link>(link: &mut L) -> Result<Seen, Fault> {
    let revision = link.marks().await?.newest;
    let stamp = link.stamp(revision).await?;
    Ok(Seen { revision, stamp })
}

/// There is no more behind it for now.
fn is_last(page: &Page) -> bool {
    u32::try_from(page.rows.len()).is_ok_and(|rows| rows < PAGE)
}

async fn told<L: Link>(link: Option<&mut L>) {
    match link {
        Some(link) => link.told().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
