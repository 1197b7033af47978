//! What a client of an agent's local port sees of a server that fails: how long until it is answered again.
//!
//! Two servers on PostgreSQL and an agent, each on a host of its own. The client is on the agent's host and asks for a
//! namespace, each time on a connection of its own, as soon as it has an answer; it gives up after [`pair::GIVES_UP`]. What is
//! under way at the instant of the fault is left to its fate, for nobody else can answer it, and asked anew at once. A round
//! counts only if the server that failed is the one behind the port: a connection opened before must be of no use after.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use agent::api::Endpoint;
use nix::sched::{CloneFlags, setns};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::pair::{self, Kind, Pair, SERVERS};
use crate::table::{Table, millis};

const AGENT: &str = "agent";
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(2);
/// For the agent to have its tunnels again after a server's return.
const SETTLE: Duration = Duration::from_secs(8);
/// The same when the other server has taken it out of the list of servers, and the agent with it.
const SETTLE_LISTED: Duration = Duration::from_secs(25);
/// Promised for a server whose end shows, whose machine is silent, or that stands still.
const LIMIT: Duration = Duration::from_secs(1);
/// The longest that a server's start or a fail-over may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy)]
enum Fault {
    /// SIGKILL; the machine goes on and refuses connections.
    Killed,
    /// SIGSTOP; the machine goes on and takes connections.
    Stalled,
    /// Packets between the agent and the server get lost, both ways.
    Silent,
}

/// A round's result.
struct Round {
    took: Duration,
    failed: usize,
}

/// Measures all kinds of faults.
pub async fn measure(table: &mut Table) {
    let mut field = Field::start().await;
    for (fault, what, rounds, limit) in [
        (Fault::Killed, "the server killed", 5, Some(LIMIT)),
        (
            Fault::Silent,
            "no packet to or from the server's machine",
            3,
            Some(LIMIT),
        ),
        (Fault::Stalled, "the server stopped with SIGSTOP", 3, Some(LIMIT)),
    ] {
        let (mut times, mut failed) = (Vec::new(), 0);
        while times.len() < rounds {
            if let Some(round) = field.round(fault).await {
                println!("{what}: {} with {} failures", millis(round.took), round.failed);
                times.push(round.took);
                failed += round.failed;
            }
        }
        let what = format!("fail-over seen at an agent's local port, {what}");
        table.times(&what, &times, limit);
        table.number(
            &format!("{what}: requests that failed in {rounds} rounds"),
            count(failed),
            "",
            None,
        );
    }
    field.pair.lab.stop();
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn count(failed: usize) -> f64 {
    failed as f64
}

struct Field {
    pair: Pair,
    /// The one that fails next.
    next: usize,
}

impl Field {
    async fn start() -> Self {
        let mut pair = Pair::start(Kind::PostgreSql).await;
        pair.lab.add_host(AGENT);
        pair.lab.start_agent(AGENT, SERVERS[0]);
        let field = Self { pair, next: 0 };
        let through = field.pair.endpoint("127.0.0.1", 6444);
        on_host(AGENT, move || async move { pair::answered(&through).await }).await;
        sleep(SETTLE).await;
        field
    }

    /// One fault and its end. `None` when the server that failed was not the one in use.
    async fn round(&mut self, fault: Fault) -> Option<Round> {
        let name = SERVERS[self.next];
        self.next = 1 - self.next;
        let through = self.pair.endpoint("127.0.0.1", 6444);
        let (ready, begins) = oneshot::channel();
        let (told, fails) = oneshot::channel();
        let client = on_host(AGENT, move || client(through, ready, fails));
        let failing = async {
            begins.await.unwrap();
            match fault {
                Fault::Killed => self.pair.lab.end(name, true),
                Fault::Stalled => self.pair.lab.pause(name),
                Fault::Silent => self.pair.lab.part(AGENT, name),
            }
            told.send(Instant::now()).unwrap();
        };
        let (round, ()) = tokio::join!(client, failing);
        match fault {
            Fault::Killed => self.pair.start_server(name).await,
            Fault::Stalled => self.pair.lab.resume(name),
            Fault::Silent => self.pair.lab.reunite(AGENT, name),
        }
        let listed = round.as_ref().is_none_or(|round| round.took < LIMIT);
        sleep(if listed { SETTLE } else { SETTLE_LISTED }).await;
        round
    }
}

/// Asks until the fault has happened and a request that began after it was answered.
async fn client(through: Endpoint, ready: oneshot::Sender<()>, mut fails: oneshot::Receiver<Instant>) -> Option<Round> {
    let mut kept = through.connect().await.unwrap();
    assert!(pair::ask(&mut kept).await, "no answer before the fault");
    ready.send(()).unwrap();
    let failed_at = loop {
        tokio::select! {
            biased;
            at = &mut fails => break at.unwrap(),
            () = async {
                pair::ask_anew(&through).await;
                sleep(PAUSE).await;
            } => {}
        }
    };
    let mut failed = 0;
    while !pair::ask_anew(&through).await {
        failed += 1;
        assert!(failed_at.elapsed() < PATIENCE, "no fail-over");
        sleep(PAUSE).await;
    }
    let took = failed_at.elapsed();
    (!pair::ask(&mut kept).await).then_some(Round { took, failed })
}

/// Runs in a thread of its own in the network of a host.
async fn on_host<T, F>(name: &'static str, work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (done, result) = oneshot::channel();
    let there = thread::spawn(move || {
        let network = File::open(format!("/run/netns/{name}")).unwrap();
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let _ = done.send(runtime.block_on(work()));
    });
    let result = result.await;
    there.join().unwrap();
    result.unwrap()
}
