//! The local load balancer: a TCP port on loopback that leads to a server that works.
//!
//! `choice.rs` decides; this is the shell: it accepts, dials (the next server too when one is slow to answer), copies, and
//! ends the connections of a server that is gone.
//! TLS goes through it untouched. The health of servers is told by the tunnels (`report`) and by its own dials. The kernel of
//! a machine whose server stands still accepts connections for it: so a dial asks the server's tunnel as well (`Pulse`).

mod choice;
mod pair;
#[cfg(test)]
mod simulation;
pub mod state;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

pub use self::pair::{Balancers, Servers};

use self::choice::{Choice, Dialed, State};
use crate::dial::{self, Resolve};

/// Bytes that a server's machine does not acknowledge, or does not take, for so long end the connection, as does silence when it is
/// probed: its client comes again, by another way.
const UNACKNOWLEDGED_MS: u32 = 15_000;
/// Connections through the port at once; the agent itself has about five.
const CONNECTIONS: usize = 256;

/// How long a connection waits for its server's tunnel before it is used without: no sign of life is no proof, and there may be
/// no better way.
const PULSE_LIMIT: Duration = Duration::from_secs(2);

/// Asks a server for a sign of life, through its tunnel; resolves when it has given one.
pub type Pulse = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// The balancer. Clones are the same one.
#[derive(Clone)]
pub struct Balancer(Arc<Inner>);

struct Inner {
    choice: Mutex<Choice>,
    resolve: Resolve,
    /// Why the last dial of all servers failed.
    trouble: Mutex<Option<String>>,
    /// Of the servers that a tunnel stands to.
    pulses: Arc<Mutex<HashMap<String, Pulse>>>,
    /// Ends the connections of a server: they wait for a change.
    cuts: Mutex<HashMap<String, watch::Sender<()>>>,
    changed: watch::Sender<()>,
    /// The pulses are of another port of the servers.
    beside: bool,
}

impl Inner {
    fn new(default: &str, remembered: &[String], seed: u64, resolve: Resolve) -> Self {
        Self {
            choice: Mutex::new(Choice::new(default, remembered, seed)),
            resolve,
            trouble: Mutex::default(),
            pulses: Arc::default(),
            cuts: Mutex::default(),
            changed: watch::Sender::new(()),
            beside: false,
        }
    }
}

impl Balancer {
    /// A balancer over the configured server (`host:port`) and those of an earlier run; `seed` is this node's.
    pub fn new(default: &str, remembered: &[String], seed: u64) -> Self {
        Self::with_names(default, remembered, seed, dial::system())
    }

    fn with_names(default: &str, remembered: &[String], seed: u64, resolve: Resolve) -> Self {
        Self(Arc::new(Inner::new(default, remembered, seed, resolve)))
    }

    /// Serves the port for ever; dropping the future ends it and every connection.
    pub async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((client, _)) => {
                    let balancer = self.clone();
                    connections.spawn(async move {
                        balancer.carry(client).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(error = %error, "load balancer cannot accept");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The servers that the cluster names now.
    pub fn set(&self, addresses: &[String]) {
        let gone = lock(&self.0.choice).set(addresses);
        let mut cuts = lock(&self.0.cuts);
        // Without their sender, the connections of a server end.
        gone.iter().for_each(|address| drop(cuts.remove(address)));
        drop(cuts);
        self.0.changed.send_replace(());
    }

    /// A tunnel to a server stands, or broke.
    pub fn report(&self, address: &str, up: bool) {
        if up {
            let left = lock(&self.0.choice).up(address);
            left.iter().for_each(|address| self.cut(address));
            return;
        }
        let elsewhere = lock(&self.0.choice).down(address);
        if elsewhere {
            self.cut(address);
        }
    }

    /// A tunnel to a server stands, and can be asked for a sign of life until the returned value is dropped.
    pub fn feel(&self, address: &str, pulse: Pulse) -> Felt {
        lock(&self.0.pulses).insert(address.to_owned(), pulse);
        Felt {
            balancer: self.clone(),
            address: address.to_owned(),
        }
    }

    /// Resolves when a server other than this one has given a sign of life; never, if no tunnel stands to any.
    pub async fn another_lives(&self, address: &str) {
        let pulses = lock(&self.0.pulses).clone();
        let others = pulses.into_iter().filter(|(other, _)| other != address);
        let mut signs: FuturesUnordered<_> = others.map(|(_, pulse)| pulse()).collect();
        if signs.next().await.is_none() {
            std::future::pending().await
        }
    }

    /// Whether connections to a server are open, or being opened.
    fn carries(&self, address: &str) -> bool {
        let carries = |sender: &watch::Sender<()>| sender.receiver_count() > 0;
        lock(&self.0.cuts).get(address).is_some_and(carries)
    }

    fn has_another_tunnel(&self, address: &str) -> bool {
        lock(&self.0.pulses).keys().any(|other| other != address)
    }

    /// A server says that it cannot write, until [`Balancer::report`] says that it is up.
    pub fn unready(&self, address: &str) {
        let elsewhere = lock(&self.0.choice).unready(address);
        if elsewhere {
            self.cut(address);
        }
    }

    fn current(&self) -> Option<String> {
        lock(&self.0.choice).current().map(str::to_owned)
    }

    fn healthy(&self) -> Vec<String> {
        lock(&self.0.choice).in_state(State::Healthy)
    }

    fn unchecked(&self) -> Vec<String> {
        lock(&self.0.choice).in_state(State::Unchecked)
    }

    /// The servers that a tunnel is wanted to.
    pub fn addresses(&self) -> Vec<String> {
        lock(&self.0.choice).addresses()
    }

    /// The ways of a new connection.
    #[cfg(test)]
    pub fn order(&self) -> Vec<String> {
        lock(&self.0.choice).order()
    }

    /// Notices of [`Balancer::set`], and of a server that can be reached again.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Why no server can be reached, if the last connection found none.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.0.trouble).clone()
    }

    async fn carry(&self, mut client: TcpStream) {
        let Some((mut server, mut cut)) = self.dial().await else {
            return;
        };
        let _ = client.set_nodelay(true);
        tokio::select! {
            ended = copy_bidirectional(&mut client, &mut server) => {
                if let Err(error) = ended {
                    debug!(error = %error, "connection to a server broke");
                }
            }
            _ = cut.changed() => {}
        }
    }

    /// The first server that answers.
    async fn dial(&self) -> Option<(TcpStream, watch::Receiver<()>)> {
        let order = lock(&self.0.choice).order();
        let only_way = order.len() == 1;
        let dials = order.into_iter().map(|address| async move {
            let cut = self.cuts(&address);
            let alive = async { Ok(only_way || self.sign_of_life(&address).await) };
            match tokio::try_join!(open(&self.0.resolve, &address), alive) {
                Ok((server, alive)) => {
                    // That a kernel accepts for a server whose tunnel says nothing makes the server no better.
                    if alive {
                        self.dialed(&address);
                    }
                    *lock(&self.0.trouble) = None;
                    Ok((server, cut))
                }
                Err(error) => {
                    self.report(&address, false);
                    Err(format!("{address}: {error}"))
                }
            }
        });
        let failures = match dial::race(dials.collect()).await {
            Ok(dialed) => return Some(dialed),
            Err(failures) => failures,
        };
        let failures = failures.join(", ");
        debug!(error = failures, "all servers failed");
        *lock(&self.0.trouble) = Some(failures);
        None
    }

    /// Waits until the tunnel of a server has told that it lives, [`PULSE_LIMIT`] at most, and answers whether it has. Without a
    /// tunnel nothing speaks against it.
    async fn sign_of_life(&self, address: &str) -> bool {
        match self.pulse(address) {
            Some(pulse) => timeout(PULSE_LIMIT, pulse()).await.is_ok(),
            None => true,
        }
    }

    /// Of this server; or else, where the tunnels are to another port, of one at its host.
    fn pulse(&self, address: &str) -> Option<Pulse> {
        let pulses = lock(&self.0.pulses);
        let beside = || {
            let mut all = pulses.iter().filter(|_| self.0.beside);
            all.find(|(other, _)| host_of(other) == host_of(address))
                .map(|(_, pulse)| pulse)
        };
        pulses.get(address).or_else(beside).cloned()
    }

    /// A connection to a server was made.
    pub(crate) fn dialed(&self, address: &str) {
        let Dialed { recovered, left } = lock(&self.0.choice).dialed(address);
        left.iter().for_each(|address| self.cut(address));
        if recovered {
            self.0.changed.send_replace(());
        }
    }

    /// Changes when the connections to a server have to end; who holds it is one of them.
    pub(crate) fn cuts(&self, address: &str) -> watch::Receiver<()> {
        let mut cuts = lock(&self.0.cuts);
        cuts.entry(address.to_owned())
            .or_insert_with(|| watch::Sender::new(()))
            .subscribe()
    }

    fn cut(&self, address: &str) {
        if let Some(sender) = lock(&self.0.cuts).get(address) {
            sender.send_replace(());
        }
    }
}

/// A tunnel that can be asked for a sign of life, see [`Balancer::feel`].
pub struct Felt {
    balancer: Balancer,
    address: String,
}

impl Drop for Felt {
    fn drop(&mut self) {
        lock(&self.balancer.0.pulses).remove(&self.address);
    }
}

async fn open(resolve: &Resolve, address: &str) -> io::Result<TcpStream> {
    let stream = dial::connect_by(resolve, address).await?;
    stream.set_nodelay(true)?;
    dial::probe(&stream)?;
    // Nothing that goes to a server waits for a person: one that takes nothing stands still.
    setsockopt(&stream, TcpUserTimeout, &UNACKNOWLEDGED_MS)?;
    Ok(stream)
}

/// The host of `host:port`, with the brackets of an IPv6 address.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::choice::State;
    use super::*;

    /// What a user is promised: a new connection is at a server that works (`docs/server-died.md`).
    const MOVE: Duration = Duration::from_secs(1);

    async fn server(name: u8, tasks: &mut JoinSet<()>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tasks.spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_u8(name).await.unwrap();
                open.push(stream);
            }
        });
        address
    }

    #[tokio::test]
    async fn connections_move_when_their_server_fails() {
        let mut tasks = JoinSet::new();
        let (a, b) = (server(1, &mut tasks).await, server(2, &mut tasks).await);
        let balancer = Balancer::new(&a, &[a.clone(), b.clone()], 0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tasks.spawn(balancer.clone().serve(listener));
        balancer.report(&a, true);
        balancer.report(&b, true);
        let mut first = TcpStream::connect(port).await.unwrap();
        let name = first.read_u8().await.unwrap();
        let (used, other) = if name == 1 { (a, 2) } else { (b, 1) };
        balancer.report(&used, false);
        assert!(first.read_u8().await.is_err(), "its connection ends");
        let mut next = TcpStream::connect(port).await.unwrap();
        assert_eq!(next.read_u8().await.unwrap(), other);
        tasks.shutdown().await;
    }

    /// A port that answers nothing: its queue is full, and the kernel drops what knocks.
    async fn silent(held: &mut Vec<TcpStream>) -> (String, TcpListener) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let patience = Duration::from_millis(300);
        while let Ok(queued) = timeout(patience, TcpStream::connect(&address)).await {
            held.push(queued.unwrap());
        }
        (address, listener)
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_does_not_keep_a_connection_from_the_next() {
        let (mut tasks, mut held) = (JoinSet::new(), Vec::new());
        let (a, _queue) = silent(&mut held).await;
        let b = server(2, &mut tasks).await;
        let balancer = Balancer::new(&a, &[a.clone(), b], 0);
        balancer.report(&a, true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tasks.spawn(balancer.clone().serve(listener));
        for _ in 0..2 {
            let mut through = TcpStream::connect(port).await.unwrap();
            let name = timeout(MOVE, through.read_u8()).await;
            assert_eq!(name.expect("after the head start").unwrap(), 2);
        }
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_server_that_stands_still_does_not_keep_a_connection_from_the_next() {
        let mut tasks = JoinSet::new();
        let (still, b) = (server(1, &mut tasks).await, server(2, &mut tasks).await);
        let balancer = Balancer::new(&still, &[still.clone(), b.clone()], 0);
        let (moves, moving) = watch::channel(true);
        let pulse: Pulse = Arc::new(move || {
            let mut moving = moving.clone();
            Box::pin(async move { drop(moving.wait_for(|moving| *moving).await) })
        });
        let felt = balancer.feel(&still, pulse);
        let _other = balancer.feel(&b, Arc::new(|| Box::pin(std::future::ready(()))));
        balancer.report(&still, true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tasks.spawn(balancer.clone().serve(listener));
        let name = async || TcpStream::connect(port).await.unwrap().read_u8().await.unwrap();
        assert_eq!(name().await, 1);
        moves.send_replace(false);
        assert_eq!(timeout(PULSE_LIMIT / 2, name()).await.expect("after the head start"), 2);
        moves.send_replace(true);
        assert_eq!(name().await, 2, "what works stays in use");
        // A way that is the only one is taken, whatever its tunnel says.
        balancer.set(std::slice::from_ref(&still));
        moves.send_replace(false);
        assert_eq!(name().await, 1);
        drop(felt);
        assert!(lock(&balancer.0.pulses).get(&still).is_none());
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_server_that_stands_still_gets_no_better_by_being_the_last_resort() {
        let mut tasks = JoinSet::new();
        let still = server(1, &mut tasks).await;
        let balancer = Balancer::new(&still, &[still.clone(), "127.0.0.1:1".to_owned()], 0);
        let _felt = balancer.feel(&still, Arc::new(|| Box::pin(std::future::pending())));
        balancer.report(&still, true);
        balancer.report(&still, false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tasks.spawn(balancer.clone().serve(listener));
        let changes = balancer.changes();
        let mut through = TcpStream::connect(port).await.unwrap();
        let name = timeout(dial::LIMIT, through.read_u8()).await;
        assert_eq!(name.unwrap().unwrap(), 1, "there is no better way");
        assert_eq!(lock(&balancer.0.choice).state(&still), Some(State::Failed));
        assert!(!changes.has_changed().unwrap(), "nothing is told to have recovered");
        assert_eq!(balancer.trouble(), None);
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_does_not_hold_up_the_others_of_its_name() {
        let (mut tasks, mut held) = (JoinSet::new(), Vec::new());
        let (a, _queue) = silent(&mut held).await;
        let b = server(2, &mut tasks).await;
        let addresses = [a, b].map(|address| address.parse().unwrap());
        let names: Resolve = Arc::new(move |_| Box::pin(async move { Ok(addresses.to_vec()) }));
        let balancer = Balancer::with_names("servers.test:6443", &[], 0, names);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tasks.spawn(balancer.serve(listener));
        // Whichever address comes first.
        for _ in 0..8 {
            let mut through = TcpStream::connect(port).await.unwrap();
            let name = timeout(MOVE, through.read_u8()).await;
            assert_eq!(name.expect("after the head start").unwrap(), 2);
        }
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn connections_that_had_nowhere_to_go_move_when_another_server_comes_back() {
        let mut tasks = JoinSet::new();
        let a = server(1, &mut tasks).await;
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let b = reserved.local_addr().unwrap().to_string();
        let balancer = Balancer::new(&a, &[a.clone(), b.clone()], 0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tasks.spawn(balancer.clone().serve(listener));
        balancer.report(&b, false);
        let mut first = TcpStream::connect(port).await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), 1);
        balancer.report(&a, false);
        balancer.report(&b, true);
        let ended = timeout(dial::LIMIT, first.read_u8()).await;
        assert!(ended.expect("it ends").is_err());
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_stranger_at_a_remembered_address_is_not_the_only_way() {
        let mut tasks = JoinSet::new();
        let (stranger, right) = (server(1, &mut tasks).await, server(2, &mut tasks).await);
        let balancer = Balancer::new(&right, std::slice::from_ref(&stranger), 0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tasks.spawn(balancer.clone().serve(listener));
        let mut through = TcpStream::connect(port).await.unwrap();
        assert_eq!(through.read_u8().await.unwrap(), 1, "the remembered one comes first");
        Balancers::from(balancer.clone()).doubt();
        let mut through = TcpStream::connect(port).await.unwrap();
        assert_eq!(through.read_u8().await.unwrap(), 2);
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn it_says_why_no_server_can_be_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        let balancer = Balancer::new("127.0.0.1:1", &[], 0);
        let mut tasks = JoinSet::new();
        tasks.spawn(balancer.clone().serve(listener));
        assert!(TcpStream::connect(port).await.unwrap().read_u8().await.is_err());
        assert!(balancer.trouble().unwrap().contains("127.0.0.1:1"));
        tasks.shutdown().await;
    }
}
