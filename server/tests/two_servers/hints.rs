//! Servers tell each other of commits where the datastore does not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::units::Revision;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use server::cache::{Filter, From, WatchEvent};
use server::request::What;
use server::store::memory::Memory;
use server::store::{Entry, Range, Snapshot, Store, StoreError, Tail, Write};
use tests::database::{MariaDb, Postgres, SqlServer as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::{Machines, PATIENCE, map, until};

/// One server's view of a store that tells nobody: what others wrote shows once they have said so.
struct Mute {
    shared: Arc<Memory>,
    commits: watch::Sender<Revision>,
    known: watch::Sender<Revision>,
    tails: Mutex<JoinSet<()>>,
}

impl Mute {
    fn of(shared: &Arc<Memory>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            commits: watch::Sender::default(),
            known: watch::Sender::default(),
            tails: Mutex::default(),
        })
    }

    fn knows(&self, revision: Revision) {
        self.known.send_modify(|known| *known = (*known).max(revision));
    }
}

impl Store for Mute {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            let written = self.shared.write(write).await;
            match &written {
                Ok(revision) => {
                    self.knows(*revision);
                    self.commits.send_replace(*revision);
                }
                // As a database does: who lost has read against what.
                Err(StoreError::Conflict { .. }) => self.knows(self.shared.revision().await?),
                Err(_) => {}
            }
            written
        }
        .boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        async move {
            let mut tail = self.shared.watch(from).await?;
            let (send, receive) = mpsc::channel(1024);
            while let Ok(batch) = tail.try_recv() {
                send.try_send(batch).unwrap();
            }
            let mut known = self.known.subscribe();
            self.tails.lock().unwrap().spawn(async move {
                while let Some(batch) = tail.recv().await {
                    let last = batch.last().unwrap().revision;
                    known.wait_for(|known| *known >= last).await.unwrap();
                    send.send(batch).await.unwrap_or_default();
                }
            });
            Ok(receive)
        }
        .boxed()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.shared.get(key)
    }
    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.shared.list(range, at)
    }
    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.shared.compact(oldest)
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.shared.revision()
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.shared.close()
    }
    fn commits(&self) -> Option<watch::Receiver<Revision>> {
        Some(self.commits.subscribe())
    }
    fn hint(&self, revision: Revision) {
        self.knows(revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_told_to_the_other_server_and_to_one_that_comes_back() {
    let (machines, shared) = (Machines::new("hints"), Arc::new(Memory::new()));
    let start = async |name: &str| {
        machines
            .start(name, "secret", &(Mute::of(&shared) as Arc<dyn Store>))
            .await
    };
    let (a, b) = (start("a").await, start("b").await);
    // Leases are written every 3 s; the one in between shows that nobody waits for his own.
    for (number, (at, seen)) in [(&a, &b), (&b, &a), (&a, &b)].into_iter().enumerate() {
        let name = format!("map{number}");
        until("the other server takes hints", async || {
            at.client.create(What::CONFIG_MAPS, "default", map(&name)).await.is_ok()
        })
        .await;
        until("it is seen on the other server", async || {
            seen.client.get(What::CONFIG_MAPS, "default", &name).await.is_ok()
        })
        .await;
    }
    b.leave().await;
    let b = start("b").await;
    a.client
        .create(What::CONFIG_MAPS, "default", map("again"))
        .await
        .unwrap();
    until("it is seen on the server that came back", async || {
        b.client.get(What::CONFIG_MAPS, "default", "again").await.is_ok()
    })
    .await;
    a.leave().await;
    b.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_mariadb_a_watch_on_one_server_shows_at_once_what_the_other_commits() {
    let database = MariaDb::start();
    shows_at_once("MariaDB", &database.endpoint("hints", "")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_does_on_a_postgresql_that_does_not_notify() {
    let database = Postgres::start();
    database.sql("postgres", "CREATE DATABASE hints");
    database.sql(
        "hints",
        "CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'notifications are switched off'; END $$;
         ALTER DATABASE hints SET search_path = public, pg_catalog",
    );
    shows_at_once("a mute PostgreSQL", &database.endpoint("hints", "")).await;
}

/// Two servers on this database. So many commits in a row have to show in so short a time, sooner or later: a busy machine may take
/// its time now and then. By looking every 30 ms alone it is every second one, so that of a million tries one would do.
async fn shows_at_once(name: &str, endpoint: &str) {
    const IN_A_ROW: usize = 20;
    const AT_ONCE: Duration = Duration::from_millis(15);
    let machines = Machines::new(&name.replace(' ', "-"));
    let [a, b] = machines.start_both(endpoint).await;
    let watching = b
        .client
        .watch(What::CONFIG_MAPS, Some("default"), Filter::default(), From::Now);
    let mut maps = watching.await.unwrap();
    let mut first = 0;
    until("the other server is followed", async || {
        first += 1;
        let name = format!("first{first}");
        let _ = a.client.create(What::CONFIG_MAPS, "default", map(&name)).await;
        b.client.get(What::CONFIG_MAPS, "default", &name).await.is_ok()
    })
    .await;
    let (mut late, mut in_a_row) = (Vec::new(), 0);
    let begun = Instant::now();
    while in_a_row < IN_A_ROW {
        let number = late.len();
        let name = format!("m{number}");
        a.client.create(What::CONFIG_MAPS, "default", map(&name)).await.unwrap();
        let committed = Instant::now();
        let seen = async {
            loop {
                if let Some(WatchEvent::Change(_, item)) = maps.next().await
                    && item.field("metadata.name") == name
                {
                    return;
                }
            }
        };
        timeout(PATIENCE, seen).await.unwrap();
        let took = committed.elapsed();
        late.push(took);
        in_a_row = if took < AT_ONCE { in_a_row + 1 } else { 0 };
        assert!(begun.elapsed() < PATIENCE, "never so many in a row at once: {late:?}");
        // Out of step with whoever looks now and then.
        sleep(Duration::from_millis(u64::try_from(number % 37).unwrap())).await;
    }
    late.sort_unstable();
    let (half, most) = (late[late.len() / 2], late[late.len() * 99 / 100]);
    println!(
        "from commit to watch on {name}: {} commits, p50 {half:?}, p99 {most:?}",
        late.len()
    );
    a.stop().await.unwrap();
    b.stop().await.unwrap();
}
