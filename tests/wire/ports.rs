//! An agent at servers whose API has another port than their supervisor, as RKE2's and those of K3s may: two local ports, two
//! files, and each question at the right port of the right server. The far end is played.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::balancer::Balancers;
use agent::config::ServerUrl;
use agent::join::{Clock, Files, Identity, Joined, Joiner};
use agent::run::balancers;
use agent::tunnel::Tunnels;
use tokio::task::JoinSet;

use crate::played::{CONFIG, Machine, PATIENCE, Played, SETTINGS};

const NODE: &str = "/api/v1/nodes/pi";
const LISTED: &str = "/v1-k3s/apiservers";
const SETTINGS_OF_TWO_PORTS: (&str, &str) = (r#""SupervisorPort":6443"#, r#""SupervisorPort":9345"#);

/// An agent as it runs, without its kubelet.
struct Agent {
    joined: Joined,
    balancers: Balancers,
    tasks: JoinSet<()>,
}

impl Agent {
    async fn start(machine: &Machine, joins: bool) -> Self {
        let (config, files) = (&machine.config, Files::create(machine.path("agent")).unwrap());
        let identity = Identity::open(&machine.path("etc"), "pi", false).unwrap();
        let mut tasks = JoinSet::new();
        let supervisor = balancers::open(config, "pi", &files, &mut tasks).await.unwrap();
        let joiner = Joiner {
            config,
            identity: &identity,
            files: &files,
            address: balancers::address(config),
            clock: Clock::open(&files),
        };
        let joined = match joins {
            true => joiner.once().await.unwrap(),
            false => joiner.remembered().await.unwrap(),
        };
        let balancers = balancers::open_api(config, &joined, supervisor, &mut tasks);
        Self {
            balancers: balancers.await.unwrap(),
            joined,
            tasks,
        }
    }

    async fn asks_for_its_node(&self) -> bool {
        self.joined.client.get(NODE).await.is_ok()
    }
}

/// Joins at a registration address that has no API, learns of the server, and comes back when that address is gone.
pub async fn an_api_with_a_port_of_its_own_has_a_balancer_of_its_own() {
    let settings = SETTINGS.replace(SETTINGS_OF_TWO_PORTS.0, SETTINGS_OF_TWO_PORTS.1);
    assert_ne!(settings, SETTINGS);
    let registration = Played::at("127.0.0.3:9345");
    registration.also(CONFIG, &settings);
    registration.also(LISTED, r#"["127.0.0.2:6443"]"#);
    // The same cluster at another address.
    let (supervisor, api) = (
        registration.beside("127.0.0.2:9345"),
        registration.beside("127.0.0.2:6443"),
    );
    registration.also(NODE, r#"{"kind":"Node"}"#);
    let mut machine = Machine::new(&registration, Some(registration.token("node:secret")));
    machine.config.server = ServerUrl::new("127.0.0.3", 9345);
    let text = |name: &str| fs::read_to_string(machine.path(name)).unwrap();

    let mut agent = Agent::start(&machine, true).await;
    for name in ["kubelet", "kubeproxy", "k3scontroller"] {
        let kubeconfig = text(&format!("agent/{name}.kubeconfig"));
        assert!(kubeconfig.contains("server: https://127.0.0.1:6443\n"), "{kubeconfig}");
    }
    assert!(
        !agent.asks_for_its_node().await,
        "nothing is known but the registration address"
    );
    let tunnels = Tunnels {
        client: agent.joined.client.supervisor(),
        balancer: agent.balancers.clone(),
        kubelet_port: 10250,
        supervisor_port: Some(9345),
    };
    let keep = balancers::keeper(&machine.config, &agent.joined);
    let reached = async {
        while !agent.asks_for_its_node().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let running = tunnels.run(|| 0.5, keep, reached);
    tokio::time::timeout(PATIENCE, running).await.unwrap();
    agent.tasks.shutdown().await;
    for (name, url, address) in [
        ("k3s-agent-load-balancer", "https://127.0.0.3:9345", "127.0.0.2:9345"),
        (
            "k3s-api-server-agent-load-balancer",
            "https://127.0.0.3:6443",
            "127.0.0.2:6443",
        ),
    ] {
        let file = text(&format!("agent/etc/{name}.json"));
        // K3s' `pkg/agent/loadbalancer/config.go`: indented by two, and no line's end.
        let wanted = format!("{{\n  \"ServerURL\": \"{url}\",\n  \"ServerAddresses\": [\n    \"{address}\"\n  ]\n}}");
        assert_eq!(file, wanted);
    }

    // From the disk alone: nobody has named a server yet, and the registration address hangs up on everybody.
    registration.hangs_up.store(true, Ordering::SeqCst);
    for played in [&registration, &supervisor, &api] {
        played.all();
    }
    let agent = Agent::start(&machine, false).await;
    assert!(agent.asks_for_its_node().await);
    agent.joined.client.supervisor().get(LISTED).await.unwrap();
    let line = |played: &Played| -> Vec<String> {
        let heard = played.all();
        heard.iter().map(|heard| heard.head.replace("\r\n", " ")).collect()
    };
    let head = |path: &str, port| format!("GET {path} HTTP/1.1 host: 127.0.0.1:{port}");
    let (at_api, at_supervisor) = (line(&api), line(&supervisor));
    assert_eq!(at_api.len(), 1, "{at_api:?}");
    assert!(at_api[0].starts_with(&head(NODE, 6443)), "{at_api:?}");
    assert_eq!(at_supervisor.len(), 1, "{at_supervisor:?}");
    assert!(at_supervisor[0].starts_with(&head(LISTED, 6444)), "{at_supervisor:?}");
    assert_eq!(line(&registration), Vec::<String>::new());
}
