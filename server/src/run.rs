//! Starts the server's parts in order and stops them in reverse.
//!
//! data directory → store → port → the cluster's identity, certificates and secrets → cache → registry → API → listener →
//! first objects → ready → controllers, scheduler, upkeep → this machine's node. [`Server`] is all but the node, so that
//! tests run it whole; [`run`] is what `k3s server` does. Stopping leaves pods running: whoever starts next takes them up
//! again.
//!
//! While the store cannot be opened, connections are refused. Once it is open the port is bound, so that a port in use is
//! told at once; should the datastore go away then, before the listener runs, connections hang in the port's backlog.

mod address;
mod certificates;
pub mod data_dir;
mod derived;
mod greeting;
mod ground;
mod kubeconfig;
mod node;
mod objects;
mod patience;
mod upkeep;
mod whereabouts;

use std::future::Future;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::address::Addresses;
use self::ground::Ground;
use self::patience::patiently;
use self::whereabouts::Follower;
use crate::config::{Config, Datastore};
use crate::join::files;
use crate::join::rotation::Rotation;
use crate::peers::{Peers, Place};
use crate::request::Client;
use crate::store::{OpenError, Store, StoreError};
use crate::tunnel::Sessions;
use crate::{http, store};

/// What is not over by then is cut off; a service manager waits 90 s.
const STOP: Duration = Duration::from_secs(20);

/// Between two tries to bind an address that is not there yet.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// A running control plane.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The API as the supervisor.
    pub client: Client,
    dir: PathBuf,
    /// Where others reach it.
    place: watch::Receiver<Place>,
    stopping: watch::Sender<bool>,
    listening: JoinSet<()>,
    /// Cache and authorization, which follow the store.
    serving: JoinSet<()>,
    /// Whatever acts on the cluster by itself.
    acting: JoinSet<()>,
    /// Where other servers can be.
    peers: Option<Peers>,
    sessions: Arc<Sessions>,
    store: Arc<dyn Store>,
    _lock: data_dir::Lock,
}

/// Runs a server until `shutdown`, with a node unless the configuration says otherwise.
///
/// # Errors
/// When a part cannot start: what it is, and what to do.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let began = Instant::now();
    for warning in &config.warnings {
        warn!("{warning}");
    }
    say(&greeting::begin(&config.data_dir));
    let named = node::named(&config, &node::folder())?;
    let mut shutdown = std::pin::pin!(shutdown);
    let mut server = tokio::select! {
        started = Server::start(&named) => started?,
        // It may wait for a datastore for ever.
        () = &mut shutdown => return Ok(()),
    };
    let (store, mut lost) = (Arc::clone(&server.store), None);
    let shutdown = async {
        tokio::select! {
            () = shutdown => {}
            why = upkeep::lost(&*store) => lost = Some(why),
        }
    };
    greet(&named, &server, began.elapsed());
    agent::config::notify_ready(config.notify.as_deref());
    let outcome = if config.disable_agent {
        shutdown.await;
        Ok(())
    } else {
        node::run(&config, &named.node.name, &mut server, shutdown).await
    };
    drop(store);
    say("Stopping; pods keep running");
    let stopped = timeout(STOP, server.stop()).await;
    if let Some(why) = lost {
        return Err(anyhow!("the datastore could be served no longer: {why}"));
    }
    outcome?;
    stopped.map_err(|_| anyhow!("not everything ended in {} s", STOP.as_secs()))?
}

impl Server {
    /// Starts everything but the node.
    ///
    /// # Errors
    /// When a part cannot start: what it is, and what to do.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let lock = data_dir::take(&config.data_dir)?;
        let store = open_store(config).await?;
        Self::start_with(config, lock, store, config.datastore.is_shared()).await
    }

    /// As [`Server::start`], on a store that is open already and that other servers may share.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_on(config: &Config, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let lock = data_dir::take(&config.data_dir)?;
        Self::start_with(config, lock, store, true).await
    }

    async fn start_with(
        config: &Config,
        lock: data_dir::Lock,
        store: Arc<dyn Store>,
        shared: bool,
    ) -> anyhow::Result<Self> {
        let dir = config.data_dir.join("server");
        let listener = listen(config).await?;
        let port = listener.local_addr().context("the listener has no address")?.port();
        let own = Addresses::of(config).await;
        let (whereabouts, place) = watch::channel(own.place(port));

        let mut serving = JoinSet::new();
        let ground = Ground::lay(config, &dir, store, &own, &mut serving).await?;
        let (stopping, stop) = watch::channel(false);
        let (ready, is_ready) = watch::channel(false);
        let (rotation, rotator) = Rotation::new(
            Arc::clone(&ground.store),
            Arc::clone(&ground.passwd),
            &ground.dir,
            shared,
        );
        let peers = match shared {
            true => Some(
                Peers::new(
                    ground.client.clone(),
                    Arc::clone(&ground.registry),
                    &config.node.name,
                    place.clone(),
                )
                .map_err(|_| anyhow!("the system has no randomness"))?,
            ),
            false => None,
        };
        let sessions = Sessions::new();
        let (http, keeper) = ground.doors(config, &place, peers.clone(), is_ready, rotation, &sessions)?;
        let mut listening = JoinSet::new();
        listening.spawn(http::serve(listener, ground.pki.entrance()?, http, stop));

        let first = ground.first_objects(config, &place, peers.as_ref()).await?;
        ready.send_replace(true);

        let mut acting = ground.actors(config, peers.as_ref(), &sessions)?;
        acting.spawn(keeper.run());
        acting.spawn(rotator.run());
        // Whoever waits for readiness keeps the sender: dropped, it would read as "not ready".
        acting.spawn(async move { ready.closed().await });
        certificates::write_kubeconfig(config, &ground.pki, port)?;
        acting.spawn(certificates::renew(config.clone(), Arc::clone(&ground.pki), port));
        acting.spawn(ground.control(config, first)?);
        acting.spawn(upkeep::tell_of_a_repair(
            Arc::clone(&ground.store),
            ground.client.clone(),
            config.node.name.clone(),
        ));
        let follower = Follower {
            pki: Arc::clone(&ground.pki),
            place: whereabouts,
            client: ground.client.clone(),
            sessions: Arc::clone(&sessions),
            security: config.tls_san_security,
            alone: peers.is_none(),
        };
        acting.spawn(follower.run(own));
        Ok(Self {
            address: SocketAddr::new(address::loopback(config), port),
            client: ground.client,
            dir,
            place,
            stopping,
            listening,
            serving,
            acting,
            peers,
            sessions,
            store: ground.store,
            _lock: lock,
        })
    }

    /// Under which address others reach it now.
    pub fn advertised(&self) -> SocketAddr {
        self.place.borrow().address
    }

    /// `<data>/server`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A task that acts on the cluster until the server stops.
    pub fn act(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.acting.spawn(task);
    }

    /// Stops in reverse: what acts, a word to the other servers, listener and tunnels, cache, store. What was volatile is on disk afterwards.
    ///
    /// # Errors
    /// When the store could not write that.
    pub async fn stop(self) -> anyhow::Result<()> {
        let store = self.leave().await;
        store.close().await.context("the datastore did not close cleanly")?;
        info!("stopped");
        Ok(())
    }

    /// As [`Server::stop`], but leaves the store open, for whoever shares it.
    pub async fn leave(mut self) -> Arc<dyn Store> {
        self.acting.shutdown().await;
        if let Some(peers) = &self.peers {
            peers.leave().await;
        }
        self.stopping.send_replace(true);
        self.sessions.stop();
        // Requests and streams may finish; the listener itself puts an end to that.
        while self.listening.join_next().await.is_some() {}
        self.serving.shutdown().await;
        self.store
    }
}

/// Binds the port; an address of `--bind-address` that this machine does not have yet is waited for.
async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(config.bind_address, config.https_port);
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                if !told {
                    warn!(%address, "this machine does not have the address of --bind-address yet: waiting for it");
                }
                told = true;
                sleep(BIND_AGAIN).await;
            }
            bound => {
                return bound.with_context(|| {
                    format!(
                        "cannot listen on {address}: is another server running? --https-listen-port and --bind-address \
                         choose another"
                    )
                });
            }
        }
    }
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let folder = config.data_dir.join("server/db");
    files::folder(&folder, files::PRIVATE_FOLDER)?;
    let path = folder.join("state.db");
    let Datastore { endpoint, tls } = &config.datastore;
    let passes = |error: &OpenError| {
        matches!(
            error,
            OpenError::Etcd(StoreError::Unavailable(_)) | OpenError::Away { .. }
        )
    };
    patiently("datastore", passes, async || store::open(endpoint, tls, &path).await)
        .await
        .context("cannot open the datastore")
}

fn greet(config: &Config, server: &Server, took: Duration) {
    let token_file = server.dir().join("agent-token");
    // A link to the cluster's token where agents have none of their own.
    let own = !token_file.is_symlink();
    // Only a person may read a secret off the screen; what is not a terminal is a log.
    let token = std::io::stdout()
        .is_terminal()
        .then(|| std::fs::read_to_string(&token_file).ok())
        .flatten();
    let token_file = if own {
        token_file
    } else {
        server.dir().join("node-token")
    };
    say(&greeting::ready(&greeting::Started {
        took,
        address: &server.advertised().to_string(),
        reachable: server.place.borrow().reachable,
        kubeconfig: &config.kubeconfig,
        token_file: &token_file,
        token: token.as_deref().map(str::trim),
        node: (!config.disable_agent).then_some(config.node.name.as_str()),
    }));
}

/// To whoever looks; that nobody does is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
