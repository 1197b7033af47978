//! The local load balancer: a TCP port on loopback that leads to a server that works.
//!
//! `choice.rs` decides; this is the shell: it accepts, dials, copies, and ends the connections of a server that is gone.
//! TLS goes through it untouched. The health of servers is told by the tunnels (`report`) and by its own dials.

mod choice;
pub mod state;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use self::choice::Choice;

/// One dial; the next server is tried after it.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// Connections through the port at once; the agent itself has about five.
const CONNECTIONS: usize = 256;

/// The balancer. Clones are the same one.
#[derive(Clone)]
pub struct Balancer(Arc<Inner>);

struct Inner {
    choice: Mutex<Choice>,
    /// Why the last dial of all servers failed.
    trouble: Mutex<Option<String>>,
    /// Ends the connections of a server: they wait for a change.
    cuts: Mutex<HashMap<String, watch::Sender<()>>>,
    changed: watch::Sender<()>,
}

impl Balancer {
    /// A balancer over the configured server (`host:port`) and those of an earlier run; `seed` is this node's.
    pub fn new(default: &str, remembered: &[String], seed: u64) -> Self {
        Self(Arc::new(Inner {
            choice: Mutex::new(Choice::new(default, remembered, seed)),
            trouble: Mutex::default(),
            cuts: Mutex::default(),
            changed: watch::Sender::new(()),
        }))
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
        gone.iter().for_each(|address| self.cut(address));
        self.0.changed.send_replace(());
    }

    /// A tunnel to a server stands, or broke.
    pub fn report(&self, address: &str, up: bool) {
        if up {
            lock(&self.0.choice).up(address);
            return;
        }
        let elsewhere = lock(&self.0.choice).down(address);
        if elsewhere {
            self.cut(address);
        }
    }

    /// The servers that a tunnel is wanted to.
    pub fn addresses(&self) -> Vec<String> {
        lock(&self.0.choice).addresses()
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

    async fn dial(&self) -> Option<(TcpStream, watch::Receiver<()>)> {
        let order = lock(&self.0.choice).order();
        let mut failures = Vec::new();
        for address in order {
            let cut = self.cuts(&address);
            match dial(&address).await {
                Ok(server) => {
                    if lock(&self.0.choice).dialed(&address) {
                        self.0.changed.send_replace(());
                    }
                    *lock(&self.0.trouble) = None;
                    return Some((server, cut));
                }
                Err(error) => {
                    self.report(&address, false);
                    failures.push(format!("{address}: {error}"));
                }
            }
        }
        let failures = failures.join(", ");
        debug!(error = failures, "all servers failed");
        *lock(&self.0.trouble) = Some(failures);
        None
    }

    fn cuts(&self, address: &str) -> watch::Receiver<()> {
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

/// Names are resolved on each dial: a server may have moved.
async fn dial(address: &str) -> io::Result<TcpStream> {
    let stream = timeout(DIAL_LIMIT, TcpStream::connect(address)).await;
    let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

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
