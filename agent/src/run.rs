//! The agent from start to end: every part in order, stopped in reverse. Pods go on when it stops.
//!
//! identity → balancer → join (or what an earlier one left) → runtime, images → kubelet and tunnels. A machine that has
//! joined before starts its pods from what is on disk and joins again, for fresh certificates, beside that.

mod addresses;
mod authorities;
pub mod balancers;
mod certificates;
mod images;
pub mod renew;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::images::Images;
use crate::balancer::{Balancer, Balancers};
use crate::config::Config;
use crate::join::{Clock, Files, Identity, Joined, Joiner, random_fraction};
use crate::kubelet::adapt::PodnetMaker;
use crate::kubelet::{self, NodeIps, Settings};
use crate::podnet::address::Range;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::tunnel::Tunnels;

/// For the servers to be told that this node's tunnels end.
const GOODBYE: Duration = Duration::from_secs(2);
/// Longer than any part needs to end; what takes longer is cut off.
const STOP: Duration = Duration::from_secs(5);

/// Runs an agent until `shutdown`.
///
/// # Errors
/// When this machine cannot be a node: what is wrong, and what to do. An absent or refusing server is waited for.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent must run as root: it mounts file systems and makes network namespaces for pods (try sudo)");
    }
    for warning in &config.warnings {
        warn!(warning, "the configuration has something without effect");
    }
    let identity = Identity::open(&config.node_dir, &config.node_name, config.with_node_id)?;
    let files = Files::create(config.agent_dir())
        .with_context(|| format!("cannot use the data directory {}", config.data_dir.display()))?;
    let mut tasks = JoinSet::new();
    let balancer = balancers::open(&config, &identity.node_name, &files, &mut tasks).await?;
    let joiner = Joiner {
        address: balancers::address(&config),
        config: &config,
        identity: &identity,
        files: &files,
        clock: Clock::open(&files),
    };
    let mut shutdown = std::pin::pin!(shutdown);
    let started = tokio::select! {
        started = start(&config, &joiner, &balancer) => started?,
        () = &mut shutdown => return Ok(()),
    };
    let (joined, runtime, images, from_disk) = started;
    let opening = balancers::open_api(&config, &joined, balancer, &mut tasks);
    let balancer = opening.await?;
    let (leave, leaving) = oneshot::channel::<()>();
    let mut tunneling = JoinSet::new();
    tunneling.spawn(tunnels(&config, &joined, &balancer, leaving));
    tasks.spawn(images.follow());
    let ips = watch::Sender::new(joined.node_ips.clone());
    let node_ips = NodeIps::from(ips.subscribe());
    let ended = {
        let following = addresses::follow(&config, ips);
        let watching = certificates::run(&config.data_dir, &identity.node_name, &joined.client, &joiner.clock);
        let renewing = renew::run(
            &joiner,
            &joined.client,
            from_disk,
            || balancer.trouble(),
            || balancer.doubt(),
            node_ips.clone(),
        );
        let trusting = authorities::run(
            async || joiner.authorities().await,
            |tls| joined.client.replace_tls(tls),
            balancer.changes(),
        );
        let kubelet = run_kubelet(&config, &joined, node_ips, &joiner.clock, runtime, &mut shutdown);
        tokio::select! {
            ended = kubelet => ended,
            () = renewing => Ok(()),
            () = watching => Ok(()),
            () = following => Ok(()),
            () = trusting => Ok(()),
        }
    };
    info!(node = identity.node_name, "agent stops; pods go on");
    drop(leave);
    let _ = tokio::time::timeout(GOODBYE, tunneling.join_next()).await;
    let _ = tokio::time::timeout(STOP, tasks.shutdown()).await;
    ended
}

/// Joins, unless an earlier join left all there is to know; opens the runtime meanwhile.
async fn start(
    config: &Config,
    joiner: &Joiner<'_>,
    balancer: &Balancer,
) -> anyhow::Result<(Joined, Runtime, Images, bool)> {
    let doubted = Balancers::from(balancer.clone());
    let joining = async {
        match joiner.remembered().await {
            Some(joined) => {
                info!(
                    node = joined.identity.node_name,
                    "starting from the state of an earlier join"
                );
                (joined, true)
            }
            None => (joiner.join(|| balancer.trouble(), || doubted.doubt()).await, false),
        }
    };
    let opening = open_runtime(config);
    let ((joined, from_disk), opened) = tokio::join!(joining, opening);
    crate::config::notify_ready(config.notify.as_deref());
    let (runtime, images) = opened?;
    Ok((joined, runtime, images, from_disk))
}

async fn open_runtime(config: &Config) -> anyhow::Result<(Runtime, Images)> {
    let (data, run) = (config.agent_dir().join("containers"), config.run_dir.join("pods"));
    let opened = Runtime::open(RuntimeConfig::new(data, run));
    let runtime = opened.await.context("cannot open the container runtime")?;
    let (folder, state) = (config.agent_dir().join("images"), config.agent_dir().join("etc"));
    let images = Images::open(runtime.clone(), folder, state).await;
    Ok((runtime, images))
}

fn tunnels(
    config: &Config,
    joined: &Joined,
    balancer: &Balancers,
    leaving: oneshot::Receiver<()>,
) -> impl Future<Output = ()> + Send + use<> {
    let tunnels = Tunnels {
        client: joined.client.supervisor(),
        balancer: balancer.clone(),
        kubelet_port: config.kubelet_port,
        supervisor_port: joined.cluster.port_of_api().map(|_| joined.cluster.supervisor_port),
    };
    let keep = balancers::keeper(config, joined);
    tunnels.run(random_fraction, keep, async move { drop(leaving.await) })
}

async fn run_kubelet(
    config: &Config,
    joined: &Joined,
    node_ips: NodeIps,
    clock: &Arc<Clock>,
    runtime: Runtime,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let networks = PodnetMaker {
        cluster: pod_range(joined)?,
        folder: config.agent_dir().join("podnet"),
    };
    let settings = settings(config, joined, node_ips, Arc::clone(clock));
    let api = Arc::new(joined.client.clone());
    kubelet::run(settings, api, Arc::new(runtime), Arc::new(networks), shutdown).await?;
    Ok(())
}

fn pod_range(joined: &Joined) -> anyhow::Result<Range> {
    let ranges = &joined.cluster.cluster_cidrs;
    let range = ranges.iter().find(|range| range.address.is_ipv4());
    let range = range.context("the cluster has no IPv4 range for pods (--cluster-cidr of its servers)")?;
    range
        .to_string()
        .parse()
        .with_context(|| format!("the cluster's range for pods, {range}, cannot be used"))
}

fn settings(config: &Config, joined: &Joined, node_ips: NodeIps, clock: Arc<Clock>) -> Settings {
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let taints = config.taints.iter().map(|taint| kubelet::Taint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: taint.effect.clone(),
    });
    let settings = Settings::new(&joined.identity.node_name, &joined.files.dir);
    Settings {
        hostname: hostname.unwrap_or_else(|| config.node_name.clone()),
        node_ips,
        external_ips: config.node_external_ips.clone(),
        labels: config.labels.clone(),
        taints: taints.collect(),
        port: config.kubelet_port,
        bind: IpAddr::from([0, 0, 0, 0]),
        cluster_dns: joined.cluster.cluster_dns.clone(),
        cluster_domain: joined.cluster.cluster_domain.clone(),
        judged: kubelet::Judged::new(move |certificate, system| clock.moment(certificate, system)),
        resolv_conf: config.resolv_conf.clone().unwrap_or(settings.resolv_conf),
        ..settings
    }
}
