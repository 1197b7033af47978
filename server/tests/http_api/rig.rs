//! A server on a port of its own, with everything between the socket and the store.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};
use serde_json::json;
use server::auth::bootstrap;
use server::auth::guard::Authorizer;
use server::auth::token::Keys;
use server::auth::who::{Anonymous, Who};
use server::cache::{Cache, Fresh};
use server::http::{ApiHttp, Limits, Parts, serve};
use server::join::certificate::Wanted;
use server::join::key::PrivateKey;
use server::join::pki::{Names, Own, Pki};
use server::kinds;
use server::registry::{RealWorld, Registry, Settings};
use server::request::{Api, Client, User, What};
use server::store::memory::Memory;
use server::store::{Change, Expect, Store, Write};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::streams;

pub struct Rig {
    pub address: SocketAddr,
    pub dir: PathBuf,
    pub pki: Arc<Pki>,
    pub api: Arc<Api>,
    pub cache: Cache,
    pub ready: watch::Sender<bool>,
    pub stop: watch::Sender<bool>,
    pub tasks: JoinSet<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Gives the store a past that the cache, which starts later, does not know.
async fn age(store: &dyn Store) {
    for change in [
        Change::Put("{}".into()),
        Change::Delete,
        Change::Put("{}".into()),
        Change::Delete,
    ] {
        let write = Write::new("/registry/configmaps/default/forgotten", Expect::Any, change);
        store.write(write).await.unwrap();
    }
    let newest = store.revision().await.unwrap();
    store.compact(newest).await.unwrap();
}

impl Rig {
    pub async fn start() -> Self {
        Self::on(Arc::new(Memory::new()), Settings::default()).await
    }

    pub async fn on(store: Arc<dyn Store>, settings: Settings) -> Self {
        Self::with(store, settings, Limits::default()).await
    }

    /// A server whose datastore others write to, too.
    pub async fn shared(store: Arc<dyn Store>, settings: Settings) -> Self {
        Self::build(store, settings, Limits::default(), true).await
    }

    pub async fn with(store: Arc<dyn Store>, settings: Settings, limits: Limits) -> Self {
        Self::build(store, settings, limits, false).await
    }

    async fn build(store: Arc<dyn Store>, settings: Settings, limits: Limits, shared: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("amphipod-http-api-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let names = Names {
            node: "box-1".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            ..Names::default()
        };
        let pki = Arc::new(Pki::load_or_create(&dir, &names, Timestamp::now()).unwrap());
        let mut tasks = JoinSet::new();
        age(&*store).await;
        let cache = Cache::start(Arc::clone(&store), kinds::indexer(), &mut tasks)
            .await
            .unwrap();
        let fresh = shared.then(|| Fresh::new(Arc::clone(&store), cache.clone()));
        let registry = Registry::new(store, cache.clone(), Arc::new(RealWorld), settings);
        let authorizer = Arc::new(Authorizer::new(cache.clone()));
        tasks.spawn(Arc::clone(&authorizer).follow());
        let api = Arc::new(Api::new(Arc::new(registry), authorizer));
        let root = Client::new(Arc::clone(&api), User::new("system:apiserver", &["system:masters"]));
        bootstrap::reconcile(&root).await.unwrap();
        for namespace in ["default", "kube-system"] {
            let body = json!({"metadata": {"name": namespace}});
            root.create(What::NAMESPACES, "", body).await.unwrap();
            let account = json!({"metadata": {"name": "default"}});
            root.create(What::SERVICE_ACCOUNTS, namespace, account).await.unwrap();
        }
        let issuer = "https://kubernetes.default.svc.cluster.local";
        let who = Who {
            is_behind: Arc::new(|_| false),
            passwords: None,
            keys: Arc::new(Keys::from_pem(pki.service_key_pem().as_bytes(), issuer).unwrap()),
            audiences: vec![issuer.to_owned(), "k3s".to_owned()],
            anonymous: Anonymous::HealthOnly,
            cache: cache.clone(),
        };
        let kubelets = streams::kubelet(&pki, &mut tasks).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ready, readiness) = watch::channel(true);
        let (stop, stopping) = watch::channel(false);
        let http = ApiHttp::new(Parts {
            api: Arc::clone(&api),
            who,
            front: None,
            kubelets: Some(kubelets),
            fresh,
            ready: readiness,
            address: Arc::new(move || address.to_string()),
            serving: None,
            limits,
        });
        tasks.spawn(serve(listener, pki.entrance().unwrap(), http, stopping));
        Self {
            address,
            dir,
            pki,
            api,
            cache,

            ready,
            stop,
            tasks,
        }
    }

    /// A client certificate and its key, PEM.
    pub fn certificate(&self, name: &str, groups: &[&str]) -> (String, String) {
        let key = PrivateKey::generate().unwrap();
        let wanted = Wanted::client(name, groups);
        let chain = self.pki.sign_client(&wanted, key.pair(), Timestamp::now()).unwrap();
        (chain, key.pem().to_owned())
    }

    /// A client certificate that ran out long ago, and its key, PEM.
    pub fn ended(&self, name: &str, group: &str) -> (String, String) {
        let file = |name: &str| std::fs::read_to_string(self.dir.join("tls").join(name)).unwrap();
        let authority = PrivateKey::from_pem(&file("client-ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&file("client-ca.crt"), authority.pair()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &issuer).unwrap().pem();
        (chain, key.serialize_pem())
    }

    /// The administrator's certificate and key.
    pub fn admin(&self) -> (String, String) {
        let leaf = self.pki.own(Own::Admin).unwrap();
        (leaf.chain.clone(), leaf.key.pem().to_owned())
    }
}
