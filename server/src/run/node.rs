//! This machine's own node: an agent in the same process, which joins as any other does, over loopback.

use std::future::Future;
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

/// The configuration with the node's final name: what `--with-node-id` appends is known only from the machine.
///
/// # Errors
/// When the id cannot be kept.
pub(super) fn named(config: &Config) -> anyhow::Result<Config> {
    let mut named = config.clone();
    if config.node.with_id && !config.disable_agent {
        let folder = AgentConfig::new(ServerUrl::new("localhost", config.https_port), "").node_dir;
        named.node.name = Identity::open(&folder, &config.node.name, true)?.node_name;
    }
    Ok(named)
}

/// Runs the node `name` until `shutdown`, or until it cannot go on.
pub(super) async fn run(
    config: &Config,
    name: &str,
    server: &mut Server,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let agent_config = agent_config(config, server)?;
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

fn agent_config(config: &Config, server: &Server) -> anyhow::Result<AgentConfig> {
    let token = std::fs::read_to_string(server.dir().join("agent-token")).context("cannot read the agents' token")?;
    let url = ServerUrl::new(server.address.ip().to_string(), server.address.port());
    let mut agent = AgentConfig::new(url, config.node.name.clone());
    agent.token = Some(Secret::new(token.trim()));
    agent.data_dir = config.data_dir.clone();
    agent.with_node_id = config.node.with_id;
    agent.node_ips = config.node.ips.clone();
    agent.node_external_ips = config.node.external_ips.clone();
    agent.labels = config.node.labels.clone();
    agent.taints = config.node.taints.clone();
    agent.resolv_conf = config.node.resolv_conf.clone();
    agent.balancer_port = None;
    agent.debug = config.debug;
    Ok(agent)
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

    use agent::wire::object::at;
    use futures_util::poll;
    use tokio::task::JoinSet;

    use super::*;
    use crate::auth::guard::Authorizer;
    use crate::cache::Cache;
    use crate::kinds;
    use crate::registry::{RealWorld, Registry, Settings};
    use crate::request::{Api, User};
    use crate::store::memory::Memory;

    #[tokio::test(start_paused = true)]
    async fn a_node_is_labelled_also_after_the_watch_fell_behind() {
        let (store, mut serving) = (Arc::new(Memory::new()), JoinSet::new());
        let cache = Cache::start(store.clone(), kinds::indexer(), &mut serving)
            .await
            .unwrap();
        let registry = Registry::new(store, cache.clone(), Arc::new(RealWorld), Settings::default());
        let api = Arc::new(Api::new(Arc::new(registry), Arc::new(Authorizer::new(cache))));
        let client = Client::new(api, User::new("test", &["system:masters"]));
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
