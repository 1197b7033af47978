//! The local load balancers, opened: ports, and the files in which their servers are kept.
//!
//! K3s' ports: `--lb-server-port` leads to the supervisors and, where these serve the API as well, to that too; else the port
//! below it leads to the API. Source: K3s v1.36, `pkg/agent/proxy`.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::balancer::{Balancer, Balancers, Servers, state};
use crate::config::{Config, ServerUrl};
use crate::join::{Address, Files, Joined};

/// Where the supervisor is asked.
pub fn address(config: &Config) -> Address {
    let (host, port) = match config.balancer_port {
        Some(port) => ("127.0.0.1".to_owned(), port),
        None => (config.server.host().to_owned(), config.server.port()),
    };
    Address {
        host,
        port,
        shown: config.server.to_string(),
    }
}

/// The supervisors' balancer, with what an earlier run knew; it is served by one of `tasks`, if it has a port.
///
/// # Errors
/// The port is taken.
pub async fn open(config: &Config, node: &str, files: &Files, tasks: &mut JoinSet<()>) -> anyhow::Result<Balancer> {
    let known = remembered(&files.balancer(), &config.server);
    let balancer = Balancer::new(&config.server.authority(), &known, seed(node));
    serve(&balancer, config.balancer_port, tasks).await?;
    Ok(balancer)
}

/// That of the supervisors and, if the cluster's settings name another port for the API, one for that beside it.
///
/// # Errors
/// Its port is taken, or is where the API would be.
pub async fn open_api(
    config: &Config,
    joined: &Joined,
    supervisor: Balancer,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Balancers> {
    let (Some(server), Some(port)) = (api(config, joined), config.api_balancer_port()) else {
        return Ok(supervisor.into());
    };
    if server == ServerUrl::new("127.0.0.1", port) {
        bail!(
            "the agent's own load balancer would be the API of {}: set --lb-server-port",
            config.server
        );
    }
    let known = remembered(&joined.files.api_balancer(), &server);
    let api = supervisor.beside(&server.authority(), &known, seed(&joined.identity.node_name));
    serve(&api, Some(port), tasks).await?;
    Ok(Balancers::with_api(supervisor, api))
}

/// What keeps each new list of servers for the next start.
pub fn keeper(config: &Config, joined: &Joined) -> impl Fn(&Servers) -> io::Result<()> + Send + use<> {
    let (files, server) = (joined.files.clone(), config.server.clone());
    let api = api(config, joined).filter(|_| config.balancer_port.is_some());
    move |servers: &Servers| {
        let mut lists = vec![(files.balancer(), &server, &servers.supervisor)];
        lists.extend(api.as_ref().map(|api| (files.api_balancer(), api, &servers.api)));
        for (path, server, addresses) in lists {
            files.write(&path, state::write(&server.to_string(), addresses).as_bytes())?;
        }
        Ok(())
    }
}

/// The configured server with the API's port, where that is another.
fn api(config: &Config, joined: &Joined) -> Option<ServerUrl> {
    let port = joined.cluster.port_of_api()?;
    Some(ServerUrl::new(config.server.host(), port))
}

fn remembered(path: &Path, server: &ServerUrl) -> Vec<String> {
    state::read(&std::fs::read(path).unwrap_or_default(), &server.to_string())
}

fn seed(node: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(node)
}

async fn serve(balancer: &Balancer, port: Option<u16>, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let Some(port) = port else { return Ok(()) };
    let listener = TcpListener::bind(("127.0.0.1", port)).await.with_context(|| {
        format!("cannot listen on 127.0.0.1:{port}: does another agent or server run? Else set --lb-server-port")
    })?;
    tasks.spawn(balancer.clone().serve(listener));
    Ok(())
}
