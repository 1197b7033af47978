//! Keeps one tunnel to every server, for ever, and serves the streams that come through them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{debug, info, warn};

use super::session::Role;
use super::stream::{Opened, Stream, Tunnel};
use super::upgrade::upgrade;
use super::{allow, link, still};
use crate::api::Client;
use crate::balancer::{Balancers, Servers};
use crate::dial;
use crate::wire::join::PREFIX;
use crate::wire::standing::Standing;

/// TCP, TLS and the upgrade together.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// A port of this machine either answers at once or not at all.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// After a tunnel that stood; K3s' own pause.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// After many failures in a row.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How often servers that say when they change are asked for each other; sooner when one does.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// The same until the first answer, and for servers that say nothing: K3s'. One that is back is of use once its tunnel is.
const ASK_UNTOLD: Duration = Duration::from_secs(5);
/// Between attempts to keep a list of servers for the next start.
const KEEP_AGAIN: Duration = Duration::from_secs(10);
/// Not all nodes ask in the moment in which all are told.
const ASK_SPREAD: Duration = Duration::from_millis(500);
/// So long a tunnel to a server that the cluster names no more may go on for the streams in it.
const LINGER: Duration = Duration::from_secs(60);
/// How often it is looked whether streams have ended.
const LOOK: Duration = Duration::from_millis(200);

/// Whether a tunnel is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Leave {
    Stay,
    /// The server is none of the cluster's (it may be stopping): when the last stream has ended.
    WhenIdle,
    /// The agent stops.
    Now,
}

/// What tunnels need.
#[derive(Clone)]
pub struct Tunnels {
    /// Of the supervisor. Its TLS is used, whatever renewed certificate it has by then; and it asks for the servers.
    pub client: Client,
    /// Knows the servers and wants to know how they do.
    pub balancer: Balancers,
    /// What streams may lead to.
    pub kubelet_port: u16,
    /// Port of the supervisor when it is not that of the API.
    pub supervisor_port: Option<u16>,
}

/// What servers say about each other.
#[derive(Default)]
struct News {
    changed: Notify,
    /// One has said something: it would say so if they changed.
    told: AtomicBool,
}

impl News {
    /// A server says that they have changed.
    fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Until it is time to ask for the servers again. `known`: they have answered once.
    async fn time_to_ask(&self, known: bool, random: fn() -> f64) {
        let told = self.told.load(Ordering::Relaxed);
        let pause = if known && told { ASK_EVERY } else { ASK_UNTOLD };
        tokio::select! {
            () = sleep(pause.mul_f64(0.75 + random() / 2.0)) => {}
            () = self.changed.notified() => sleep(ASK_SPREAD.mul_f64(random())).await,
        }
    }
}

impl Tunnels {
    /// Runs until `stop`, then says good-bye to every server. Dropping the future cuts all tunnels.
    ///
    /// `random`: 0 to 1, spreads reconnects. `found` keeps every new list of servers, one at a time, and gets the newest
    /// again until it could.
    pub async fn run(
        self,
        random: fn() -> f64,
        found: impl Fn(&Servers) -> BoxFuture<'static, io::Result<()>>,
        stop: impl Future<Output = ()>,
    ) {
        let (mut tasks, mut open) = (JoinSet::new(), HashMap::new());
        let news = Arc::new(News::default());
        let (list, mut lists) = watch::channel(Servers::default());
        tokio::select! {
            () = stop => {}
            () = self.ask_for_servers(random, &list, &news) => {}
            () = keep_lists(found, &mut lists) => {}
            () = self.keep_all(random, &news, &mut open, &mut tasks) => {}
        }
        for leave in open.values() {
            leave.send_replace(Leave::Now);
        }
        while tasks.join_next().await.is_some() {}
    }

    /// A task for every server that the balancer knows.
    async fn keep_all(
        &self,
        random: fn() -> f64,
        news: &Arc<News>,
        open: &mut HashMap<String, watch::Sender<Leave>>,
        tasks: &mut JoinSet<()>,
    ) {
        let mut changes = self.balancer.changes();
        loop {
            let wanted = self.balancer.addresses();
            // One that has ended has let go of its end.
            open.retain(|_, leave| !leave.is_closed());
            for (address, leave) in open.iter() {
                let now = match wanted.contains(address) {
                    true => Leave::Stay,
                    false => Leave::WhenIdle,
                };
                leave.send_if_modified(|before| std::mem::replace(before, now) != now);
            }
            for address in wanted {
                open.entry(address.clone()).or_insert_with(|| {
                    let (leave, leaving) = watch::channel(Leave::Stay);
                    tasks.spawn(self.clone().keep(address, random, leaving, Arc::clone(news)));
                    leave
                });
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                // Its server may be wanted again.
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn ask_for_servers(&self, random: fn() -> f64, list: &watch::Sender<Servers>, news: &News) {
        let mut known = Servers::default();
        loop {
            match self.client.get(&format!("{PREFIX}/apiservers")).await {
                Ok(answer) => {
                    let servers = servers(&answer, self.supervisor_port);
                    if !servers.api.is_empty() && servers != known {
                        info!(servers = servers.supervisor.join(","), "servers of the cluster");
                        self.balancer.set(&servers);
                        list.send_replace(servers.clone());
                        known = servers;
                    }
                }
                Err(error) => debug!(error = %error, "cannot ask for the servers of the cluster"),
            }
            news.time_to_ask(!known.api.is_empty(), random).await;
        }
    }

    /// One server's tunnel.
    async fn keep(self, address: String, random: fn() -> f64, mut leave: watch::Receiver<Leave>, news: Arc<News>) {
        let mut failures = 0;
        let mut changes = self.balancer.changes();
        loop {
            // What is new from here on counts for the next attempt, also if it comes while this one hangs.
            changes.mark_unchanged();
            let opened = tokio::select! {
                opened = timeout(OPEN_LIMIT, self.open(&address)) => opened,
                _ = leave.wait_for(|leave| *leave == Leave::Now) => return,
            };
            match opened {
                Ok(Ok(socket)) => {
                    info!(peer = address, "tunnel open");
                    self.balancer.report(&address, true);
                    failures = 0;
                    match self.serve(socket, &address, leave.clone(), &news).await {
                        link::LinkError::Left | link::LinkError::Away => info!(peer = address, "tunnel ended"),
                        error => warn!(peer = address, error = %error, "tunnel closed"),
                    }
                    changes.mark_unchanged();
                }
                Ok(Err(error)) => warn_once(failures, &address, &error),
                Err(_) => warn_once(failures, &address, "no answer in time"),
            }
            if *leave.borrow_and_update() != Leave::Stay {
                return;
            }
            self.balancer.report(&address, false);
            let full = RETRY_FIRST
                .saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX))
                .min(RETRY_MAX);
            failures += 1;
            // The balancer may reach the server before it is time: then so does the tunnel.
            tokio::select! {
                () = sleep(full.mul_f64(0.5 + random())) => {}
                _ = changes.changed() => sleep(RETRY_FIRST.mul_f64(random())).await,
                changed = leave.changed() => if changed.is_err() || *leave.borrow() != Leave::Stay { return },
            }
        }
    }

    async fn open(&self, address: &str) -> Result<link::Socket<TlsStream<TcpStream>>, String> {
        let tls = self.client.endpoint().tls.ok_or("no certificate")?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let tcp = dial::connect(address).await.map_err(|error| error.to_string())?;
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(tls)
            .connect(name, tcp)
            .await
            .map_err(|error| error.to_string())?;
        let url = format!("wss://{address}{PREFIX}/connect");
        match upgrade(&url, tls).await {
            Ok(socket) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(match answer.status().as_u16() {
                401 => {
                    self.client.note_refusal();
                    "the server does not accept this node's certificate; the agent asks for another one".to_owned()
                }
                403 => format!(
                    "{}: has the node been deleted? Restart the agent to join again",
                    answer.status()
                ),
                _ => answer.status().to_string(),
            }),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn serve<S>(
        &self,
        socket: link::Socket<S>,
        address: &str,
        leave: watch::Receiver<Leave>,
        news: &News,
    ) -> link::LinkError
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let tunnel = Tunnel::new(Role::Listener, 1);
        let mut streams = JoinSet::new();
        let port = self.kubelet_port;
        let mut known = None;
        let ready = AtomicBool::new(true);
        let said = |word: &[u8]| {
            let Some(standing) = Standing::decode(word) else {
                return;
            };
            ready.store(standing.ready, Ordering::Relaxed);
            still::stands(&self.balancer, address, standing.ready);
            if known.replace(standing.servers) != Some(standing.servers) {
                news.tell();
            }
        };
        let taken = |opened| {
            while streams.try_join_next().is_some() {}
            let Opened {
                stream,
                protocol,
                address,
            } = opened;
            match allow::target(&protocol, &address, port) {
                Some(target) => drop(streams.spawn(carry(stream, target))),
                None => {
                    warn!(address, "refused a connection through the tunnel");
                    stream.fail("connect not allowed");
                }
            }
        };
        let asked = Arc::new(Notify::new());
        let _felt = self.balancer.feel(address, still::pulse(&tunnel, &asked));
        tokio::select! {
            error = link::run_hearing(socket, &tunnel, taken, said) => error,
            never = end(&tunnel, leave) => match never {},
            never = still::leave_when_still(&self.balancer, address, &tunnel, &asked, &ready) => match never {},
        }
    }
}

/// Ends a tunnel when it is not wanted any more, and does not come to be wanted again meanwhile.
async fn end(tunnel: &Tunnel, mut leave: watch::Receiver<Leave>) -> Infallible {
    while leave.wait_for(|leave| *leave != Leave::Stay).await.is_ok() {
        let mut wanted = leave.clone();
        let idle = async {
            while *leave.borrow() == Leave::WhenIdle && !tunnel.is_idle() {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            biased;
            _ = wanted.wait_for(|leave| *leave == Leave::Stay) => continue,
            _ = timeout(LINGER, idle) => tunnel.leave(),
        }
        break;
    }
    std::future::pending().await
}

fn warn_once(failures: u32, peer: &str, error: &str) {
    match failures {
        0 => warn!(peer, error, "cannot open a tunnel; trying again"),
        _ => debug!(peer, error, failures, "cannot open a tunnel"),
    }
}

/// The addresses in the answer, which are the API's, and with the supervisor's port.
fn servers(answer: &Value, supervisor_port: Option<u16>) -> Servers {
    let list = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let port = |address: &str| match (supervisor_port, address.rsplit_once(':')) {
        (Some(port), Some((host, _))) => format!("{host}:{port}"),
        _ => address.to_owned(),
    };
    let sorted = |mut all: Vec<String>| {
        all.sort_unstable();
        all.dedup();
        all
    };
    let api: Vec<String> = list.iter().filter_map(|item| Some(item.as_str()?.to_owned())).collect();
    Servers {
        supervisor: sorted(api.iter().map(|address| port(address)).collect()),
        api: sorted(api),
    }
}

/// Has each new list of servers kept, beside all else: a disk that stands still holds up nothing but this.
async fn keep_lists(
    found: impl Fn(&Servers) -> BoxFuture<'static, io::Result<()>>,
    lists: &mut watch::Receiver<Servers>,
) {
    while lists.changed().await.is_ok() {
        let mut failed = false;
        loop {
            let keeping = found(&lists.borrow_and_update());
            let Err(error) = keeping.await else { break };
            if !std::mem::replace(&mut failed, true) {
                warn!(error = %error, "cannot keep the list of servers, trying again");
            }
            // A newer one does not wait.
            let _ = timeout(KEEP_AGAIN, lists.changed()).await;
        }
    }
}

/// Connects a stream to a port of this machine and copies both ways until either ends: there is no half-close.
async fn carry(stream: Stream, target: SocketAddr) {
    let dialed = timeout(DIAL_LIMIT, TcpStream::connect(target)).await;
    let tcp = match dialed {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return stream.fail(&format!("dial tcp {target}: {error}")),
        Err(_) => return stream.fail(&format!("dial tcp {target}: i/o timeout")),
    };
    let _ = tcp.set_nodelay(true);
    let (mut from_tcp, mut to_tcp) = tcp.into_split();
    let (mut from_stream, mut to_stream) = split(stream);
    tokio::select! {
        _ = copy(&mut from_tcp, &mut to_stream) => {}
        _ = copy(&mut from_stream, &mut to_tcp) => {}
    }
    let _ = to_stream.shutdown().await;
    let _ = to_tcp.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;
    use crate::api::Endpoint;
    use crate::balancer::Balancer;

    #[tokio::test(start_paused = true)]
    async fn news_that_come_while_an_attempt_hangs_bring_the_next_one_forward() {
        // It accepts, and never says a word.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let servers = [address.clone()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let balancer = Balancer::new(&address, &servers, 0);
        let tunnels = Tunnels {
            client: Client::new(Endpoint {
                host: "127.0.0.1".to_owned(),
                port: 0,
                tls: Some(Arc::new(tls)),
            }),
            balancer: balancer.clone().into(),
            kubelet_port: 0,
            supervisor_port: None,
        };
        let (_leave, leaving) = watch::channel(Leave::Stay);
        let mut tasks = JoinSet::new();
        tasks.spawn(tunnels.keep(address, || 1.0, leaving, Arc::default()));
        let attempt = async || silent.accept().await.unwrap().0;
        // Until the pauses are long.
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(attempt().await);
        }
        let begun = Instant::now();
        sleep(OPEN_LIMIT / 2).await;
        balancer.set(&servers);
        held.push(attempt().await);
        let took = begun.elapsed();
        assert!(took >= OPEN_LIMIT && took <= OPEN_LIMIT + RETRY_FIRST * 2, "{took:?}");
        // Once is enough: the next pause is long again.
        let begun = Instant::now();
        held.push(attempt().await);
        assert!(begun.elapsed() > OPEN_LIMIT + RETRY_MAX, "{:?}", begun.elapsed());
        tasks.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn servers_that_tell_nothing_are_asked_often() {
        let news = News::default();
        let pause = async |known| {
            let begun = Instant::now();
            news.time_to_ask(known, || 1.0).await;
            begun.elapsed()
        };
        assert!(pause(false).await < ASK_UNTOLD * 2);
        assert!(
            pause(true).await < ASK_UNTOLD * 2,
            "a K3s server that is back has to wait"
        );
        news.tell();
        assert!(pause(true).await <= ASK_SPREAD);
        assert!(pause(true).await >= ASK_EVERY, "whoever tells is asked seldom");
        assert!(pause(false).await < ASK_UNTOLD * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_list_is_kept_once_it_can_be_and_one_at_a_time() {
        let (list, mut lists) = watch::channel(Servers::default());
        let named = |name: &str| Servers {
            api: vec![name.to_owned()],
            ..Servers::default()
        };
        let (begun, running) = (Mutex::new(Vec::new()), Arc::new(AtomicBool::new(false)));
        let found = |servers: &Servers| -> BoxFuture<'static, io::Result<()>> {
            let mut begun = begun.lock().unwrap();
            begun.push(servers.api[0].clone());
            let (at, running) = (begun.len(), Arc::clone(&running));
            assert!(!running.swap(true, Ordering::Relaxed), "two at once");
            Box::pin(async move {
                if at == 1 {
                    sleep(KEEP_AGAIN * 20).await;
                }
                running.store(false, Ordering::Relaxed);
                match at {
                    1..=3 => Err(io::ErrorKind::StorageFull.into()),
                    _ => Ok(()),
                }
            })
        };
        let told = async {
            list.send_replace(named("a"));
            sleep(KEEP_AGAIN * 10).await;
            list.send_replace(named("b"));
            list.send_replace(named("c"));
            sleep(KEEP_AGAIN * 30).await;
            list.send_replace(named("d"));
            sleep(KEEP_AGAIN * 3).await;
        };
        tokio::select! {
            () = keep_lists(&found, &mut lists) => panic!("it ends"),
            () = told => {}
        }
        assert_eq!(*begun.lock().unwrap(), ["a", "c", "c", "c", "d"]);
    }

    #[test]
    fn servers_are_sorted_and_take_the_supervisors_port() {
        let answer = json!(["10.0.0.2:6443", "10.0.0.1:6443", "10.0.0.2:6443", 7]);
        let one = ["10.0.0.1:6443", "10.0.0.2:6443"];
        let (same, other) = (servers(&answer, None), servers(&answer, Some(9345)));
        assert_eq!(
            (&same.supervisor[..], &same.api[..]),
            (&one.map(str::to_owned)[..], &one.map(str::to_owned)[..])
        );
        assert_eq!(other.supervisor, ["10.0.0.1:9345", "10.0.0.2:9345"]);
        assert_eq!(other.api, one);
        assert_eq!(servers(&json!({}), None), Servers::default());
    }
}
