//! A join over real TLS on loopback, from a server that is played: its CAs change, and it notes which addresses it is told.

use std::cell::Cell;
use std::fs;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Address, Certificate, Clock, Files, Identity, JoinError, Joiner};
use crate::config::{Config, Secret, ServerUrl};
use crate::scratch::TempDir;
use crate::wire::join::{NODE_IP, ca_hash};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(by: &Authority) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    (params.signed_by(&key, by).unwrap(), key)
}

fn tls(by: &Authority) -> Arc<ServerConfig> {
    let (certificate, key) = leaf(by);
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], key);
    Arc::new(config.unwrap())
}

/// What the server is.
struct State {
    /// What it serves as the cluster's CAs, PEM.
    bundle: String,
    /// By whom its certificate is.
    tls: Arc<ServerConfig>,
    /// What it answers for the cluster's settings.
    settings: String,
    /// Certificate and key that it gives to every node, as servers do that know no requests.
    given: String,
    /// Addresses of nodes, as it is told.
    told: Vec<String>,
}

struct Supervisor {
    state: Arc<Mutex<State>>,
    first: Authority,
    port: u16,
    _tasks: JoinSet<()>,
}

impl Supervisor {
    async fn start() -> Self {
        let first = authority();
        let (certificate, key) = leaf(&first);
        let state = Arc::new(Mutex::new(State {
            bundle: first.pem(),
            tls: tls(&first),
            settings: "{}".to_owned(),
            given: certificate.pem() + &key.serialize_pem(),
            told: Vec::new(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&state)));
        Self {
            state,
            first,
            port,
            _tasks: tasks,
        }
    }

    fn serves(&self, bundle: &[&Authority]) {
        self.state.lock().unwrap().bundle = bundle.iter().map(|it| it.pem()).collect();
    }

    fn shows(&self, by: &Authority) {
        self.state.lock().unwrap().tls = tls(by);
    }

    /// Answers what it gave before.
    fn gives(&self, pair: String) -> String {
        std::mem::replace(&mut self.state.lock().unwrap().given, pair)
    }

    fn sets(&self, settings: &str) {
        self.state.lock().unwrap().settings = settings.to_owned();
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().told)
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::clone(&state.lock().unwrap().tls));
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let serving = service_fn(|request| {
                let answer = answer(&request, &mut state.lock().unwrap());
                async move { Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer)))) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(tls), serving).await;
        });
    }
}

fn answer(request: &Request<Incoming>, state: &mut State) -> String {
    if let Some(ips) = request.headers().get(NODE_IP) {
        state.told.push(ips.to_str().unwrap().to_owned());
    }
    match request.uri().path().rsplit('/').next() {
        Some("config") => state.settings.clone(),
        Some("cacerts" | "server-ca.crt" | "client-ca.crt") => state.bundle.clone(),
        _ => state.given.clone(),
    }
}

/// A machine that has the whole token of a server.
struct Machine {
    config: Config,
    identity: Identity,
    files: Files,
    _folder: TempDir,
}

impl Machine {
    fn new(supervisor: &Supervisor) -> Self {
        let folder = TempDir::new("played");
        let mut config = Config::new(ServerUrl::new("127.0.0.1", supervisor.port), "pi");
        let hash = ca_hash(supervisor.first.pem().as_bytes());
        config.token = Some(Secret::new(format!("K10{hash}::server:secret")));
        Self {
            config,
            identity: Identity::open(&folder.path().join("etc"), "pi", false).unwrap(),
            files: Files::create(folder.path().join("agent")).unwrap(),
            _folder: folder,
        }
    }

    fn joiner(&self) -> Joiner<'_> {
        let server = &self.config.server;
        Joiner {
            config: &self.config,
            identity: &self.identity,
            files: &self.files,
            address: Address {
                host: server.host().to_owned(),
                port: server.port(),
                shown: server.to_string(),
            },
            clock: Arc::new(Clock::default()),
        }
    }

    fn trusted(&self) -> String {
        fs::read_to_string(self.files.server_ca()).unwrap()
    }
}

#[tokio::test]
async fn a_renewed_certificate_names_the_addresses_that_the_node_has_registered() {
    let supervisor = Supervisor::start().await;
    let machine = Machine::new(&supervisor);
    let first = machine.joiner().once().await.unwrap();
    let found = first
        .node_ips
        .iter()
        .map(IpAddr::to_string)
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(supervisor.told(), [found.clone(), found]);
    // As of a machine that keeps an address while a second way out has come up.
    let registered = vec![IpAddr::from([192, 0, 2, 7]), IpAddr::from([192, 0, 2, 8])];
    let renewed = machine.joiner().renew(|| registered.clone(), || None, || ()).await;
    assert_eq!(renewed.node_ips, registered);
    assert_eq!(supervisor.told(), ["192.0.2.7,192.0.2.8"; 2]);
}

#[tokio::test]
async fn a_renewal_that_got_a_dead_certificate_goes_to_another_server() {
    let supervisor = Supervisor::start().await;
    let machine = Machine::new(&supervisor);
    let joiner = machine.joiner();
    let joined = joiner.once().await.unwrap();
    let kept = || fs::read(machine.files.cert(Certificate::ClientKubelet)).unwrap();
    let before = kept();
    // As of a server whose clock is years behind.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    let dead = params.signed_by(&key, &supervisor.first).unwrap().pem() + &key.serialize_pem();
    let good = supervisor.gives(dead);
    let times = Cell::new(0);
    let astray = || {
        times.set(times.get() + 1);
        assert_eq!(kept(), before, "what it had is better");
        // The next one.
        supervisor.gives(good.clone());
    };
    let renewing = joiner.renew(|| joined.node_ips.clone(), || None, astray);
    timeout(Duration::from_secs(30), renewing).await.unwrap();
    assert_eq!(times.get(), 1);
}

#[tokio::test]
async fn one_odd_or_missing_answer_turns_who_joins_away_and_not_who_renews() {
    let supervisor = Supervisor::start().await;
    let machine = Machine::new(&supervisor);
    let mut joiner = machine.joiner();
    let joined = joiner.once().await.unwrap();
    let (failed, turned) = (Cell::new(0), Cell::new(0));
    let trouble = || {
        failed.set(failed.get() + 1);
        supervisor.sets("{}"); // the next answer is right
        None
    };
    let astray = || turned.set(turned.get() + 1);
    let limit = Duration::from_secs(30);
    supervisor.sets("<html>");
    timeout(limit, joiner.join(trouble, astray)).await.unwrap();
    assert_eq!((failed.take(), turned.take()), (1, 1));
    supervisor.sets("<html>");
    let renewing = joiner.renew(|| joined.node_ips.clone(), trouble, astray);
    timeout(limit, renewing).await.unwrap();
    assert_eq!((failed.take(), turned.take()), (1, 0));
    // Nobody is there.
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    joiner.address.port = unused.local_addr().unwrap().port();
    drop(unused);
    for (renews, turns) in [(false, 1), (true, 0)] {
        let attempts = async {
            match renews {
                true => joiner.renew(|| joined.node_ips.clone(), trouble, astray).await,
                false => joiner.join(trouble, astray).await,
            }
        };
        let once = async {
            while failed.get() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            _ = attempts => panic!("nobody is there"),
            waited = timeout(limit, once) => waited.unwrap(),
        }
        assert_eq!((failed.take(), turned.take()), (1, turns));
    }
}

#[tokio::test]
async fn an_authority_that_the_cluster_gains_is_taken_before_a_server_shows_it() {
    let supervisor = Supervisor::start().await;
    let machine = Machine::new(&supervisor);
    let joiner = machine.joiner();
    let joined = joiner.once().await.unwrap();
    assert!(joiner.authorities().await.unwrap().is_none(), "there is none yet");
    let second = authority();
    supervisor.serves(&[&supervisor.first, &second]);
    let tls = joiner.authorities().await.unwrap().expect("there is one now");
    assert_eq!(machine.trusted(), supervisor.first.pem() + &second.pem());
    assert_eq!(
        fs::read_to_string(machine.files.client_ca()).unwrap(),
        machine.trusted()
    );
    assert!(joiner.authorities().await.unwrap().is_none(), "taken once");
    supervisor.shows(&second);
    assert!(
        joined.client.get("/config").await.is_err(),
        "with what was known before"
    );
    joined.client.replace_tls(tls);
    joined.client.get("/config").await.unwrap();
    joiner
        .once()
        .await
        .expect("its token still names the CA of the beginning");
    // The old one goes, which is not believed on the way, and is by who renews.
    supervisor.serves(&[&second]);
    assert!(joiner.authorities().await.unwrap().is_none());
    assert_eq!(machine.trusted(), supervisor.first.pem() + &second.pem());
    joiner.once().await.unwrap();
    assert_eq!(machine.trusted(), second.pem());
}

#[tokio::test]
async fn who_cannot_prove_to_be_of_the_cluster_adds_no_authority() {
    let supervisor = Supervisor::start().await;
    let mut machine = Machine::new(&supervisor);
    machine.joiner().once().await.unwrap();
    let (before, impostor) = (machine.trusted(), authority());
    supervisor.serves(&[&supervisor.first, &impostor]);
    supervisor.shows(&impostor);
    let refused = machine.joiner().authorities().await;
    assert!(matches!(refused, Err(JoinError::Untrusted { .. })), "{refused:?}");
    assert!(matches!(machine.joiner().once().await, Err(JoinError::CaHash { .. })));
    // The token of another cluster is no cure, and no reason to go on with the one on disk.
    supervisor.shows(&supervisor.first);
    let other = ca_hash(impostor.pem().as_bytes());
    machine.config.token = Some(Secret::new(format!("K10{other}::server:secret")));
    assert!(matches!(machine.joiner().once().await, Err(JoinError::CaHash { .. })));
    assert_eq!(machine.trusted(), before);
}
