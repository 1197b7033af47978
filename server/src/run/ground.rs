//! What all else of a server stands on: identity, certificates, cache, registry and API; and what is started over it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::wire::status::Status;
use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::address::Addresses;
use super::patience::patiently;
use super::{certificates, derived, objects, upkeep};
use crate::auth::guard::Authorizer;
use crate::auth::token::Keys;
use crate::auth::who::{Anonymous, Who};
use crate::cache::{Cache, Fresh};
use crate::config::Config;
use crate::control::{Desk, Door};
use crate::http::{self, ApiHttp, Kubelets};
use crate::join::bootstrap::{self, BootstrapError};
use crate::join::files;
use crate::join::keeper::Keeper;
use crate::join::passwd::Passwd;
use crate::join::pki::{Own, Pki, SUPERVISOR};
use crate::join::register::Register;
use crate::join::rotation::Rotation;
use crate::join::supervisor::{Parts, Supervisor};
use crate::kinds;
use crate::peers::{Link, Peers, Place, Relay};
use crate::registry::{RealWorld, Registry};
use crate::request::{Api, Client, User};
use crate::store::{Store, StoreError};
use crate::tunnel::Sessions;
use crate::{auth, controllers, peers, scheduler};

/// The objects that there have to be at a start, and after a restore: what this version counts on, and where this server is.
pub(super) struct First {
    client: Client,
    facts: objects::Facts,
    place: watch::Receiver<Place>,
    peers: Option<Peers>,
}

impl First {
    async fn ensure(&self) -> Result<(), Status> {
        let client = &self.client;
        let Place { address, reachable } = *self.place.borrow();
        let endpoints = async {
            match &self.peers {
                Some(peers) => peers.arrive().await,
                None if reachable => peers::reconcile_endpoints(client, &[address].into()).await,
                // What they say from an earlier start may come true again.
                None => Ok(()),
            }
        };
        let objects = async {
            objects::ensure(client, objects::namespaces()).await?;
            let (rest, endpoints) = tokio::join!(objects::ensure(client, objects::rest(&self.facts)), endpoints);
            rest.and(endpoints)
        };
        let (roles, objects) = tokio::join!(auth::bootstrap::reconcile(client), objects);
        roles.and(objects)
    }
}

/// What all else stands on.
pub(super) struct Ground {
    pub(super) dir: PathBuf,
    pub(super) pki: Arc<Pki>,
    pub(super) passwd: Arc<Passwd>,
    pub(super) store: Arc<dyn Store>,
    cache: Cache,
    pub(super) registry: Arc<Registry>,
    api: Arc<Api>,
    /// The API as the supervisor.
    pub(super) client: Client,
}

impl Ground {
    /// Certificates and secrets, the datastore's if it has any; cache, registry and API over it.
    pub(super) async fn lay(
        config: &Config,
        dir: &Path,
        store: Arc<dyn Store>,
        own: &Addresses,
        serving: &mut JoinSet<()>,
    ) -> anyhow::Result<Self> {
        let names = derived::names(config, own);
        let given = derived::given(config);
        certificates::await_clock(dir, Timestamp::now).await;
        let away = |error: &BootstrapError| matches!(error, BootstrapError::Store(StoreError::Unavailable(_)));
        let settle = async || bootstrap::settle(&*store, dir, &given, Timestamp::now()).await;
        let given = patiently("identity", away, settle).await?;
        let (pki, passwd) = certificates::make(dir, names, given).await?;
        let away = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
        let start = async || Cache::start(Arc::clone(&store), kinds::indexer(), serving).await;
        let cache = patiently("state", away, start)
            .await
            .context("cannot read the cluster's state")?;
        let registry = Arc::new(Registry::new(
            Arc::clone(&store),
            cache.clone(),
            Arc::new(RealWorld),
            derived::settings(config)?,
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
    pub(super) fn doors(
        &self,
        config: &Config,
        place: &watch::Receiver<Place>,
        peers: Option<Peers>,
        ready: watch::Receiver<bool>,
        rotation: Rotation,
        sessions: &Arc<Sessions>,
    ) -> anyhow::Result<(Arc<ApiHttp>, Keeper)> {
        // Nobody else writes otherwise.
        let is_shared = peers.is_some();
        let fresh = || is_shared.then(|| Fresh::new(Arc::clone(&self.store), self.cache.clone()));
        let (register, keeper) = Register::new(self.client.clone(), fresh(), &self.dir.join("cred"))
            .map_err(|_| anyhow!("the system has no randomness"))?;
        let (sessions, store) = (Arc::clone(sessions), Arc::clone(&self.store));
        let link = Link::new(self.pki.client_config(Own::Supervisor)?);
        let relay = Relay::new(Arc::clone(&sessions), peers.map(|peers| (peers, link)));
        let kubelets = Kubelets::new(Arc::new(relay), self.pki.client_config(Own::ApiServer)?);
        let who = self.who(config)?;
        let psk = files::read(&self.dir.join(bootstrap::PSK)).context("cannot read the nodes' shared key")?;
        let psk = psk.unwrap_or_default();
        let supervisor = Supervisor::new(Parts {
            pki: Arc::clone(&self.pki),
            by_header: Arc::new(move |headers| {
                let now = Timestamp::now();
                let found = who.by_header(headers, now);
                found.map_err(|_| who.bootstrap_not_taken(headers, now))
            }),
            register,
            rotation,
            client: self.client.clone(),
            ready: ready.clone(),
            files: self.dir.join("static"),
            settings: derived::cluster_settings(config, place.borrow().address.port(), psk.trim()).to_json(),
            place: place.clone(),
            sessions: Arc::clone(&sessions),
            hint: Arc::new(move |revision| store.hint(revision)),
            tunnels: Arc::new(move |node, socket| Arc::clone(&sessions).accept(node, socket).boxed()),
        });
        let at = place.clone();
        let http = ApiHttp::new(http::Parts {
            api: Arc::clone(&self.api),
            who: self.who(config)?,
            front: Some(Arc::new(supervisor)),
            kubelets: Some(kubelets),
            fresh: fresh(),
            ready,
            address: Arc::new(move || at.borrow().address.to_string()),
            serving: Some(Arc::clone(&self.pki)),
            limits: http::Limits::default(),
        });
        Ok((http, keeper))
    }

    fn who(&self, config: &Config) -> anyhow::Result<Who> {
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster.cluster_domain);
        let keys = Keys::from_pem(self.pki.service_key_pem().as_bytes(), &issuer).context("server/tls/service.key")?;
        let pki = Arc::clone(&self.pki);
        Ok(Who {
            is_behind: Arc::new(move |now| pki.is_behind(now)),
            passwords: Some(Arc::clone(&self.passwd) as Arc<dyn auth::who::Passwords>),
            keys: Arc::new(keys),
            audiences: vec![issuer, "k3s".to_owned()],
            anonymous: Anonymous::HealthOnly,
            cache: self.cache.clone(),
        })
    }

    /// The control socket.
    pub(super) fn control(&self, config: &Config, first: First) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let first = Arc::new(first);
        let desk = Desk::new(
            Arc::clone(&self.store),
            self.cache.clone(),
            self.client.clone(),
            &config.data_dir,
            &config.node.name,
            upkeep::backup_tool(&config.datastore.endpoint),
            Box::new(move || {
                let first = Arc::clone(&first);
                async move { first.ensure().await }.boxed()
            }),
        );
        let door = Door::open(&config.data_dir).context("cannot make the control socket server/control.sock")?;
        Ok(Arc::new(desk).serve(door))
    }

    /// Makes the first objects, and returns what makes them again.
    pub(super) async fn first_objects(
        &self,
        config: &Config,
        place: &watch::Receiver<Place>,
        peers: Option<&Peers>,
    ) -> anyhow::Result<First> {
        if let Some(peers) = peers {
            peers.alone().await.map_err(|status| anyhow!("{}", status.message))?;
        }
        let first = First {
            client: self.client.clone(),
            facts: objects::Facts {
                service_ip: derived::first_service(config)?,
                port: place.borrow().address.port(),
            },
            place: place.clone(),
            peers: peers.cloned(),
        };
        patiently(
            "first objects",
            |status: &Status| status.code == 503,
            async || first.ensure().await,
        )
        .await
        .map_err(|status| anyhow!("cannot make the cluster's first objects: {}", status.message))?;
        Ok(first)
    }

    /// Controllers, scheduler and the repair of claims: here, or on whichever server leads.
    pub(super) fn actors(
        &self,
        config: &Config,
        peers: Option<&Peers>,
        sessions: &Arc<Sessions>,
    ) -> anyhow::Result<JoinSet<()>> {
        let mut acting = JoinSet::new();
        let settings = controllers::Settings {
            root_ca: self.pki.server_ca_pem().to_owned(),
            cluster_cidr: derived::pod_range(config)?,
        };
        let cache = self.cache.clone();
        let start = move |registry: &Arc<Registry>, api: &Arc<Api>, tasks: &mut JoinSet<()>| {
            controllers::start(api, &cache, settings.clone(), tasks);
            scheduler::start(api, tasks);
            let registry = Arc::clone(registry);
            tasks.spawn(async move { registry.keep_addresses().await });
        };
        match peers {
            None => start(&self.registry, &self.api, &mut acting),
            Some(peers) => {
                let (registry, api) = peers.leaders(&self.api);
                acting.spawn(peers.clone().stay(Arc::clone(sessions)));
                if let Some(commits) = self.store.commits() {
                    let link = Link::new(self.pki.client_config(Own::Supervisor)?);
                    acting.spawn(peers.clone().tell(link, commits));
                }
                acting.spawn(peers.clone().stand(move |tasks| start(&registry, &api, tasks)));
            }
        }
        Ok(acting)
    }
}
