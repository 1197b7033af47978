//! This machine's own node: an agent in the same process, which joins as any other does, over loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::config::{Config as AgentConfig, Secret, ServerUrl};
use agent::join::Identity;
use agent::wire::object::text;
use anyhow::Context as _;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::warn;

use super::Server;
use crate::cache::{Filter, From, Watch, WatchEvent};
use crate::config::Config;
use crate::request::{Client, Patch, What};

/// What a server's node is labelled with; a kubelet may not do that itself.
const ROLE: &str = "node-role.kubernetes.io/control-plane";
/// Until a watch that ended, or could not begin, is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Where this machine's node keeps its password and id.
pub(super) fn folder() -> PathBuf {
    AgentConfig::new(ServerUrl::new("localhost", 0), "").node_dir
}

/// The configuration with the node's final name: what `--with-node-id` appends is known only from the machine, and kept in
/// `folder`. Without a node there is no id, and the flag does nothing.
///
/// # Errors
/// When the id cannot be kept.
///
/// Source: K3s v1.36, `pkg/agent/config` (only an agent makes an id), `pkg/cli/server` (`ServerNodeName` is without).
pub(super) fn named(config: &Config, folder: &Path) -> anyhow::Result<Config> {
    let mut named = config.clone();
    if config.node.with_id && !config.disable_agent {
        named.node.name = Identity::open(folder, &config.node.name, true)?.node_name;
    }
    Ok(named)
}

/// Runs the node until `shutdown`, or until it cannot go on. `config`: as it was given; `name`: as [`named`] has it.
pub(super) async fn run(
    config: &Config,
    name: &str,
    server: &mut Server,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let token = std::fs::read_to_string(server.dir().join("agent-token")).context("cannot read the agents' token")?;
    let agent_config = agent_config(config, server.address, token.trim());
    server.act(label(server.client.clone(), name.to_owned()));
    let (stop, stopped) = oneshot::channel::<()>();
    let agent = agent::run::run(agent_config, async { drop(stopped.await) });
    tokio::pin!(agent, shutdown);
    tokio::select! {
        ended = &mut agent => return ended.context("this machine's node ended"),
        () = &mut shutdown => {}
    }
    let _ = stop.send(());
    agent.await
}

fn agent_config(config: &Config, server: SocketAddr, token: &str) -> AgentConfig {
    let url = ServerUrl::new(server.ip().to_string(), server.port());
    let mut agent = AgentConfig::new(url, config.node.name.clone());
    agent.token = Some(Secret::new(token));
    agent.data_dir = config.data_dir.clone();
    agent.with_node_id = config.node.with_id;
    agent.node_ips = config.node.ips.clone();
    agent.node_external_ips = config.node.external_ips.clone();
    agent.labels = config.node.labels.clone();
    agent.taints = config.node.taints.clone();
    agent.resolv_conf = config.node.resolv_conf.clone();
    agent.balancer_port = None;
    agent.debug = config.debug;
    agent
}

/// Labels our node whenever it appears without the label.
async fn label(client: Client, name: String) {
    let Ok(fields) = agent::wire::selector::Fields::parse(&format!("metadata.name={name}")) else {
        return;
    };
    let filter = Filter {
        fields,
        ..Filter::default()
    };
    let from = From::State { bookmark: false };
    loop {
        match client.watch(What::NODES, None, filter.clone(), from).await {
            Ok(nodes) => label_as_seen(nodes, &client, &name).await,
            Err(status) => warn!(node = name, error = status.message, "cannot watch this machine's node"),
        }
        // A watch ends when it falls behind.
        sleep(REOPEN).await;
    }
}

async fn label_as_seen(mut nodes: Watch, client: &Client, name: &str) {
    while let Some(event) = nodes.next().await {
        let WatchEvent::Change(_, item) = event else { continue };
        if item.label(ROLE).is_some() || text(&item.value(), &["metadata", "name"]) != name {
            continue;
        }
        let patch = Patch::Merge(json!({ "metadata": { "labels": { ROLE: "true" } } }));
        if let Err(status) = client.patch(What::NODES, "", name, None, patch).await {
            warn!(node = name, error = status.message, "cannot label this machine's node");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agent::config::Surroundings;
    use agent::wire::object::at;
    use futures_util::poll;
    use tokio::task::JoinSet;

    use super::*;
    use crate::config::{Command, parse};
    use crate::scratch::{self, Scratch};
    use crate::store::memory::Memory;

    fn config(scratch: &Scratch, flags: &str) -> Config {
        let file = scratch.0.join("config.yaml");
        std::fs::write(&file, "").unwrap();
        let line = format!("k3s server --config {} --node-name Shed {flags}", file.display());
        let around = Surroundings {
            root: true,
            ..Surroundings::default()
        };
        match parse(line.split_whitespace().map(Into::into), &around).unwrap() {
            Command::Server(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_and_its_node_have_one_name_with_one_id() {
        let scratch = Scratch::new("node-named");
        let folder = scratch.0.join("rancher/node");
        let config = config(&scratch, "--with-node-id");
        let name = named(&config, &folder).unwrap().node.name;
        let id = name.strip_prefix("shed-").unwrap();
        assert!(
            id.len() == 8 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            "{name}"
        );
        assert_eq!(named(&config, &folder).unwrap().node.name, name, "at the next start");
        let agent = agent_config(&config, ([127, 0, 0, 1], 6443).into(), "secret");
        assert_eq!(agent.node_dir, super::folder());
        let identity = Identity::open(&folder, &agent.node_name, agent.with_node_id).unwrap();
        assert_eq!(identity.node_name, name, "the id is appended once");
    }

    #[test]
    fn without_an_id_or_without_a_node_the_name_is_as_it_was_given() {
        let scratch = Scratch::new("node-plain");
        let folder = scratch.0.join("node");
        for flags in ["", "--with-node-id --disable-agent", "--disable-agent"] {
            assert_eq!(
                named(&config(&scratch, flags), &folder).unwrap().node.name,
                "shed",
                "{flags}"
            );
            assert!(!folder.exists(), "{flags}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_labelled_also_after_the_watch_fell_behind() {
        let mut serving = JoinSet::new();
        let client = scratch::client(Arc::new(Memory::new()), &mut serving).await;
        let node = |name: &str, note: &str| json!({"metadata": {"name": name, "annotations": {"note": note}}});

        let mut labelling = Box::pin(label(client.clone(), "edge".to_owned()));
        assert!(poll!(&mut labelling).is_pending());
        // Twice what is kept of the past.
        client.create(What::NODES, "", node("other", "")).await.unwrap();
        for letter in (b'a'..=b'z').cycle().take(160) {
            let note = char::from(letter).to_string().repeat(200 * 1024);
            let change = Patch::Merge(node("other", &note));
            client.patch(What::NODES, "", "other", None, change).await.unwrap();
        }
        client.create(What::NODES, "", node("edge", "")).await.unwrap();
        let labelled = async {
            let role = ["metadata", "labels", ROLE];
            while at(&client.get(What::NODES, "", "edge").await.unwrap(), &role).is_none() {
                sleep(REOPEN).await;
            }
        };
        tokio::select! {
            () = labelling => panic!("it gave up"),
            () = labelled => {}
        }
    }
}
