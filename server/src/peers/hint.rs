//! Servers tell each other of new revisions, where the datastore does not: MySQL, MariaDB, and what speaks PostgreSQL and does
//! not notify.
//!
//! A hint is a number, and only a reason to look at the log now; looking now and then stays, so a lost hint costs the
//! delay of that. One connection from each server to each other one is kept open; the next hint goes out when the last
//! one was taken, and names the newest revision: what was committed meanwhile needs no hint of its own.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use agent::units::Revision;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::link::Link;
use super::presence::filter;
use super::{Peers, RETRY};

/// Where a server is told of another one's revisions.
pub const HINTS: &str = "/v1-k3s/peer/revisions";
/// A cluster has a handful of servers.
const MOST: usize = 16;
/// Who has not taken a hint by then is gone.
const TAKEN: Duration = Duration::from_secs(5);
/// Without commits the last hint is repeated, so that a dead connection is noticed.
const REPEAT: Duration = Duration::from_secs(10);
/// Who has not even repeated himself by then is gone.
const QUIET: Duration = Duration::from_secs(30);

impl Peers {
    /// Tells the other servers of this one's commits, until dropped.
    pub async fn tell(self, link: Link, commits: watch::Receiver<Revision>) {
        let (mut tasks, mut watch) = (JoinSet::new(), None);
        let mut open: HashMap<SocketAddr, AbortHandle> = HashMap::new();
        loop {
            if let Ok(others) = self.others().await {
                open.retain(|to, task| {
                    let stays = others.contains(to);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
                for to in others.into_iter().take(MOST) {
                    open.entry(to)
                        .or_insert_with(|| tasks.spawn(keep_told(link.clone(), to, commits.clone())));
                }
                while tasks.try_join_next().is_some() {}
            }
            tokio::select! {
                () = self.change(filter(), &mut watch) => {}
                () = sleep(QUIET) => {}
            }
        }
    }
}

/// One other server, as long as it is one.
async fn keep_told(link: Link, to: SocketAddr, mut commits: watch::Receiver<Revision>) {
    loop {
        let ended = match link.open(to, HINTS).await {
            Ok(stream) => send(stream, &mut commits).await.to_string(),
            Err(error) => error.to_string(),
        };
        debug!(server = %to, error = ended, "another server is not told of new revisions at present");
        sleep(RETRY).await;
    }
}

/// Sends hints until that fails.
async fn send(mut stream: impl AsyncRead + AsyncWrite + Unpin, commits: &mut watch::Receiver<Revision>) -> io::Error {
    let silent = || io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let newest = *commits.borrow_and_update();
        let told = async {
            stream.write_u64(newest.get()).await?;
            stream.flush().await?;
            stream.read_u8().await
        };
        match timeout(TAKEN, told).await.unwrap_or_else(|_| Err(silent())) {
            Ok(_) => {}
            Err(error) => return error,
        }
        if let Ok(Err(_)) = timeout(REPEAT, commits.changed()).await {
            return io::Error::other("the datastore is closed");
        }
    }
}

/// Takes another server's hints until it goes.
pub async fn take(mut stream: impl AsyncRead + AsyncWrite + Unpin, hint: impl Fn(Revision)) {
    while let Ok(Ok(revision)) = timeout(QUIET, stream.read_u64()).await {
        hint(Revision::new(revision));
        let taken = async {
            stream.write_u8(0).await?;
            stream.flush().await
        };
        if !matches!(timeout(TAKEN, taken).await, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_newest_revision_is_told_at_once_and_a_dead_end_is_noticed() {
        let (commits, mut seen) = watch::channel(Revision::new(7));
        let (near, far) = tokio::io::duplex(64);
        let told = Mutex::new(Vec::new());
        let taking = take(far, |revision| told.lock().unwrap().push(revision.get()));
        let acting = async {
            for revision in [8, 9, 12] {
                sleep(Duration::from_millis(1)).await;
                commits.send_replace(Revision::new(revision));
            }
            sleep(Duration::from_millis(1)).await;
        };
        tokio::select! {
            error = send(near, &mut seen) => panic!("{error}"),
            () = taking => panic!("it left"),
            () = acting => {}
        }
        assert_eq!(*told.lock().unwrap(), [7, 8, 9, 12]);

        let (near, _deaf) = tokio::io::duplex(64);
        let begun = Instant::now();
        assert_eq!(send(near, &mut seen).await.kind(), io::ErrorKind::TimedOut);
        let (_mute, far) = tokio::io::duplex(64);
        take(far, |_| panic!("nothing was said")).await;
        assert_eq!(begun.elapsed(), TAKEN + QUIET);
    }
}
