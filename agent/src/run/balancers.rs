//! The local load balancers, opened: ports, and the files in which their servers are kept.
//!
//! K3s' ports: `--lb-server-port` leads to the supervisors and, where these serve the API as well, to that too; else the port
//! below it leads to the API. Source: K3s v1.36, `pkg/agent/proxy`.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
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
pub fn keeper(
    config: &Config,
    joined: &Joined,
) -> impl Fn(&Servers) -> BoxFuture<'static, io::Result<()>> + Send + use<> {
    let (files, server) = (joined.files.clone(), config.server.clone());
    let api = api(config, joined).filter(|_| config.balancer_port.is_some());
    move |servers: &Servers| {
        let text = |server: &ServerUrl, addresses: &[String]| state::write(&server.to_string(), addresses);
        let mut lists = vec![(files.balancer(), text(&server, &servers.supervisor))];
        lists.extend(api.as_ref().map(|api| (files.api_balancer(), text(api, &servers.api))));
        write(files.clone(), lists)
    }
}

/// Off the agent's one thread: a disk that is worn out may take a minute for each attempt, or never come back.
fn write(files: Files, lists: Vec<(PathBuf, String)>) -> BoxFuture<'static, io::Result<()>> {
    let write = move || {
        let mut lists = lists.iter();
        lists.try_for_each(|(path, text)| files.write(path, text.as_bytes()))
    };
    let written = tokio::task::spawn_blocking(write);
    Box::pin(async move { written.await.map_err(io::Error::other)? })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::scratch::TempDir;

    #[tokio::test]
    async fn a_disk_that_stands_still_holds_up_nothing_but_the_file() {
        let scratch = TempDir::new("balancers-still");
        let files = Files::create(scratch.path().to_owned()).unwrap();
        let path = files.balancer();
        let pipe = path.with_file_name(".k3s-agent-load-balancer.json.tmp");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Who opens it to write waits for a reader.
        let mut writing = write(files, vec![(path, "{}".to_owned())]);
        timeout(Duration::from_millis(50), &mut writing).await.unwrap_err();
        // The test's end waits for who waits.
        let moves = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
        let _ = writing.await;
        drop(moves);
    }
}
