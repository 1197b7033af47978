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
pub mod data_dir;
mod greeting;
mod kubeconfig;
mod node;
mod objects;
mod patience;
mod upkeep;

use std::error::Error;
use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::wire::status::Status;
use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::auth::guard::Authorizer;
use crate::auth::token::Keys;
use crate::auth::who::{Anonymous, Who};
use crate::cache::{Cache, Fresh};
use crate::config::{Config, Datastore, nth};
use crate::control::{Desk, Door};
use crate::http::{self, ApiHttp, Kubelets};
use crate::join::bootstrap::{self, BootstrapError};
use crate::join::files;
use crate::join::passwd::{Given, Passwd};
use crate::join::pki::{Names, Own, Pki, SUPERVISOR};
use crate::join::register::{Keeper, Register};
use crate::join::rotation::Rotation;
use crate::join::supervisor::{Parts, Supervisor};
use crate::kinds;
use crate::peers::{Link, Peers, Relay};
use crate::registry::{RealWorld, Registry, ServiceRange, Settings};
use crate::request::{Api, Client, User};
use crate::store::{OpenError, Store, StoreError};
use crate::tunnel::Sessions;
use crate::{auth, controllers, peers, scheduler, store};
use patience::patiently;

/// What is not over by then is cut off; a service manager waits 90 s.
const STOP: Duration = Duration::from_secs(20);

/// How often the server's certificates are looked at: a few small files are read.
const LOOK: Duration = Duration::from_secs(600);

/// A running control plane.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Under which address others reach it.
    pub advertised: SocketAddr,
    /// The API as the supervisor.
    pub client: Client,
    dir: PathBuf,
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
    let named = node::named(&config)?;
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
        let addresses = address::own(config);
        let advertised = addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let advertised = SocketAddr::new(advertised, port);

        let mut serving = JoinSet::new();
        let ground = Ground::lay(config, &dir, store, addresses, &mut serving).await?;
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
                Peers::new(ground.client.clone(), advertised).map_err(|_| anyhow!("the system has no randomness"))?,
            ),
            false => None,
        };
        let sessions = Sessions::new();
        let (http, keeper) = ground.doors(config, advertised, peers.clone(), is_ready, rotation, &sessions)?;
        let mut listening = JoinSet::new();
        listening.spawn(http::serve(listener, ground.pki.server_config()?, http, stop));

        ground.first_objects(config, advertised, peers.as_ref()).await?;
        ready.send_replace(true);

        let mut acting = ground.actors(config, peers.as_ref(), &sessions)?;
        acting.spawn(keeper.run());
        acting.spawn(rotator.run());
        // Whoever waits for readiness keeps the sender: dropped, it would read as "not ready".
        acting.spawn(async move { ready.closed().await });
        write_kubeconfig(config, &ground.pki, port)?;
        acting.spawn(renew(config.clone(), Arc::clone(&ground.pki), port));
        acting.spawn(ground.control(config)?);
        acting.spawn(upkeep::tell_of_a_repair(
            Arc::clone(&ground.store),
            ground.client.clone(),
            config.node.name.clone(),
        ));
        Ok(Self {
            address: SocketAddr::new(address::loopback(config), port),
            advertised,
            client: ground.client,
            dir,
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

/// What all else stands on.
struct Ground {
    dir: PathBuf,
    pki: Arc<Pki>,
    passwd: Arc<Passwd>,
    store: Arc<dyn Store>,
    cache: Cache,
    registry: Arc<Registry>,
    api: Arc<Api>,
    /// The API as the supervisor.
    client: Client,
}

impl Ground {
    /// Certificates and secrets, the datastore's if it has any; cache, registry and API over it.
    async fn lay(
        config: &Config,
        dir: &Path,
        store: Arc<dyn Store>,
        addresses: Vec<IpAddr>,
        serving: &mut JoinSet<()>,
    ) -> anyhow::Result<Self> {
        let names = names(config, addresses);
        let given = given(config);
        let away = |error: &BootstrapError| matches!(error, BootstrapError::Store(StoreError::Unavailable(_)));
        let settle = async || bootstrap::settle(&*store, dir, &given, Timestamp::now()).await;
        let given = patiently("identity", away, settle).await?;
        let (pki, passwd) = make_secrets(dir, names, given).await?;
        let away = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
        let start = async || Cache::start(Arc::clone(&store), kinds::indexer(), serving).await;
        let cache = patiently("state", away, start)
            .await
            .context("cannot read the cluster's state")?;
        let registry = Arc::new(Registry::new(
            Arc::clone(&store),
            cache.clone(),
            Arc::new(RealWorld),
            settings(config)?,
        ));
        let authorizer = Arc::new(Authorizer::new(cache.clone()));
        serving.spawn(Arc::clone(&authorizer).follow());
        let api = Arc::new(Api::new(Arc::clone(&registry) as _, authorizer));
        let supervisor = User::new(SUPERVISOR, &["system:masters"]);
        Ok(Self {
            dir: dir.to_owned(),
            pki,
            passwd,
            store,
            cache,
            registry,
            client: Client::new(Arc::clone(&api), supervisor),
            api,
        })
    }

    /// Supervisor and API over HTTP, and who keeps the register of nodes.
    fn doors(
        &self,
        config: &Config,
        advertised: SocketAddr,
        peers: Option<Peers>,
        ready: watch::Receiver<bool>,
        rotation: Rotation,
        sessions: &Arc<Sessions>,
    ) -> anyhow::Result<(Arc<ApiHttp>, Keeper)> {
        // Nobody else writes otherwise.
        let fresh = peers.is_some();
        let fresh = fresh.then(|| Fresh::new(Arc::clone(&self.store), self.cache.clone()));
        let (register, keeper) = Register::new(self.client.clone(), &self.dir.join("cred"))
            .map_err(|_| anyhow!("the system has no randomness"))?;
        let (sessions, store) = (Arc::clone(sessions), Arc::clone(&self.store));
        let link = Link::new(self.pki.client_config(Own::Supervisor)?);
        let relay = Relay::new(Arc::clone(&sessions), peers.map(|peers| (peers, link)));
        let kubelets = Kubelets::new(Arc::new(relay), self.pki.client_config(Own::ApiServer)?);
        let who = self.who(config)?;
        let supervisor = Supervisor::new(Parts {
            pki: Arc::clone(&self.pki),
            by_header: Arc::new(move |headers| {
                let now = Timestamp::now();
                let found = who.by_header(headers, now);
                found.map_err(|_| who.bootstrap_over(headers, now))
            }),
            register,
            rotation,
            client: self.client.clone(),
            ready: ready.clone(),
            files: self.dir.join("static"),
            settings: cluster_settings(config, advertised.port()).to_json(),
            advertised: advertised.to_string(),
            sessions: Arc::clone(&sessions),
            hint: Arc::new(move |revision| store.hint(revision)),
            tunnels: Arc::new(move |node, socket| Arc::clone(&sessions).accept(node, socket).boxed()),
        });
        let http = ApiHttp::new(http::Parts {
            api: Arc::clone(&self.api),
            who: self.who(config)?,
            front: Some(Arc::new(supervisor)),
            kubelets: Some(kubelets),
            fresh,
            ready,
            address: advertised.to_string(),
            limits: http::Limits::default(),
        });
        Ok((http, keeper))
    }

    fn who(&self, config: &Config) -> anyhow::Result<Who> {
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster.cluster_domain);
        let keys = Keys::from_pem(self.pki.service_key_pem().as_bytes(), &issuer).context("server/tls/service.key")?;
        Ok(Who {
            passwords: Some(Arc::clone(&self.passwd) as Arc<dyn auth::who::Passwords>),
            keys: Arc::new(keys),
            audiences: vec![issuer, "k3s".to_owned()],
            anonymous: Anonymous::HealthOnly,
            cache: self.cache.clone(),
        })
    }

    /// The control socket.
    fn control(&self, config: &Config) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let desk = Desk::new(
            Arc::clone(&self.store),
            self.cache.clone(),
            self.client.clone(),
            &config.data_dir,
            &config.node.name,
            upkeep::backup_tool(&config.datastore.endpoint),
        );
        let door = Door::open(&config.data_dir).context("cannot make the control socket server/control.sock")?;
        Ok(Arc::new(desk).serve(door))
    }

    async fn first_objects(
        &self,
        config: &Config,
        advertised: SocketAddr,
        peers: Option<&Peers>,
    ) -> anyhow::Result<()> {
        let facts = objects::Facts {
            service_ip: first_service(config)?,
            port: advertised.port(),
        };
        let attempt = async || {
            let endpoints = async {
                match peers {
                    Some(peers) => peers.arrive().await,
                    None => peers::reconcile_endpoints(&self.client, &[advertised].into()).await,
                }
            };
            let objects = async {
                objects::ensure(&self.client, objects::namespaces()).await?;
                let (rest, endpoints) = tokio::join!(objects::ensure(&self.client, objects::rest(&facts)), endpoints);
                rest.and(endpoints)
            };
            let (roles, objects) = tokio::join!(auth::bootstrap::reconcile(&self.client), objects);
            roles.and(objects)
        };
        patiently("first objects", |status: &Status| status.code == 503, attempt)
            .await
            .map_err(|status| anyhow!("cannot make the cluster's first objects: {}", status.message))
    }

    /// Controllers, scheduler and the repair of claims: here, or on whichever server leads.
    fn actors(&self, config: &Config, peers: Option<&Peers>, sessions: &Arc<Sessions>) -> anyhow::Result<JoinSet<()>> {
        let mut acting = JoinSet::new();
        let settings = controllers::Settings {
            root_ca: self.pki.server_ca_pem().to_owned(),
            cluster_cidr: pod_range(config)?,
        };
        let (cache, registry) = (self.cache.clone(), Arc::clone(&self.registry));
        let start = move |api: &Arc<Api>, tasks: &mut JoinSet<()>| {
            controllers::start(api, &cache, settings.clone(), tasks);
            scheduler::start(api, tasks);
            let registry = Arc::clone(&registry);
            tasks.spawn(async move { registry.keep_addresses().await });
        };
        match peers {
            None => start(&self.api, &mut acting),
            Some(peers) => {
                let api = peers.leaders_api(&self.api);
                acting.spawn(peers.clone().stay(Arc::clone(sessions)));
                if let Some(commits) = self.store.commits() {
                    let link = Link::new(self.pki.client_config(Own::Supervisor)?);
                    acting.spawn(peers.clone().tell(link, commits));
                }
                acting.spawn(peers.clone().stand(move |tasks| start(&api, tasks)));
            }
        }
        Ok(acting)
    }
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(config.bind_address, config.https_port);
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: is another server running? --https-listen-port and --bind-address choose another")
    })
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

async fn make_secrets(dir: &Path, names: Names, given: Given) -> anyhow::Result<(Arc<Pki>, Arc<Passwd>)> {
    let dir = dir.to_owned();
    let made = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let pki = Pki::load_or_create(&dir, &names, Timestamp::now())?;
        let passwd = Passwd::load_or_create(&dir, &given, &pki.token_hash())?;
        Ok((Arc::new(pki), Arc::new(passwd)))
    });
    made.await?
}

fn names(config: &Config, addresses: Vec<IpAddr>) -> Names {
    Names {
        node: config.node.name.clone(),
        addresses,
        cluster_domain: config.cluster.cluster_domain.clone(),
        service: first_service(config).ok(),
        extra: config.tls_sans.clone(),
    }
}

fn given(config: &Config) -> Given {
    Given {
        token: config.token.clone(),
        agent_token: config.agent_token.clone(),
    }
}

fn cluster_settings(config: &Config, port: u16) -> agent::wire::join::ClusterConfig {
    agent::wire::join::ClusterConfig {
        https_port: port,
        supervisor_port: port,
        api_server_port: port.saturating_add(1),
        ..config.cluster.clone()
    }
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    let (network, bits) = range_v4(config.cluster.service_cidrs.first(), "--service-cidr")?;
    let base = config.cluster.node_port_base;
    let ports = base..=base.saturating_add(config.cluster.node_port_size.saturating_sub(1));
    Ok(Settings {
        services: ServiceRange { network, bits, ports },
        ..Settings::default()
    })
}

fn pod_range(config: &Config) -> anyhow::Result<(Ipv4Addr, u8)> {
    range_v4(config.cluster.cluster_cidrs.first(), "--cluster-cidr")
}

fn range_v4(range: Option<&agent::wire::join::Cidr>, flag: &str) -> anyhow::Result<(Ipv4Addr, u8)> {
    match range {
        Some(agent::wire::join::Cidr {
            address: IpAddr::V4(first),
            prefix,
        }) => Ok((*first, *prefix)),
        _ => Err(anyhow!(
            "{flag}: the first range has to be of IPv4 addresses, such as 10.42.0.0/16"
        )),
    }
}

fn first_service(config: &Config) -> anyhow::Result<IpAddr> {
    let range = config.cluster.service_cidrs.first().copied();
    range
        .and_then(|range| nth(range, 1))
        .context("--service-cidr: the range is too small")
}

fn write_kubeconfig(config: &Config, pki: &Pki, port: u16) -> anyhow::Result<()> {
    let path = &config.kubeconfig;
    let admin = pki.own(Own::Admin).context("no administrator's certificate")?;
    let server = SocketAddr::new(address::loopback(config), port);
    let text = kubeconfig::text(&format!("https://{server}"), pki.server_ca_pem(), &admin);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    files::write_if_changed(path, text.as_bytes(), config.kubeconfig_mode)
        .context("cannot write the kubeconfig (--write-kubeconfig puts it elsewhere)")?;
    Ok(())
}

/// Looks after the server's own certificates while it runs. The clock may have jumped since the last look, and an
/// operator may have taken files away: each look begins at what is on disk and what time it is. So does the kubeconfig's:
/// a write that failed, or a file that is gone, is made good at the next look, whichever certificates that one renews.
async fn renew(config: Config, pki: Arc<Pki>, port: u16) {
    loop {
        sleep(LOOK).await;
        let (config, pki) = (config.clone(), Arc::clone(&pki));
        let looked = tokio::task::spawn_blocking(move || {
            let renewed = pki.renew(Timestamp::now());
            // Also when that failed: the administrator's may have been renewed before another one could not be.
            (renewed, write_kubeconfig(&config, &pki, port))
        });
        let (renewed, kubeconfig) = match looked.await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                warn!(error = %error, "the renewal of certificates was cut off");
                continue;
            }
        };
        match renewed {
            Ok(renewed) if renewed.is_empty() => {}
            Ok(renewed) => info!(certificates = ?renewed, "renewed the server's certificates; connections go on"),
            Err(error) => warn!(error = &error as &dyn Error, "cannot renew the server's certificates"),
        }
        if let Err(error) = kubeconfig {
            warn!(error = format!("{error:#}"), "cannot bring the kubeconfig up to date");
        }
    }
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
        address: &server.advertised.to_string(),
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
