//! What a person reads on starting a server: what happens, where things are, how to go on. Pure texts.

use std::path::Path;
use std::time::Duration;

/// The facts of a started server.
pub struct Started<'a> {
    /// How long it took.
    pub took: Duration,
    /// `192.0.2.1:6443`.
    pub address: &'a str,
    /// Whether other machines reach it there.
    pub reachable: bool,
    /// The administrator's kubeconfig.
    pub kubeconfig: &'a Path,
    /// The token for other machines.
    pub token_file: &'a Path,
    /// The token itself, when a person looks and no log is written.
    pub token: Option<&'a str>,
    /// Whether this machine becomes a node.
    pub node: Option<&'a str>,
}

/// The first line.
pub fn begin(data_dir: &Path) -> String {
    format!(
        "Amphipod {} (Kubernetes {}) starts a server; its state is in {}",
        env!("CARGO_PKG_VERSION"),
        crate::KUBERNETES_VERSION,
        data_dir.display()
    )
}

/// Once it is ready.
pub fn ready(started: &Started<'_>) -> String {
    let Started {
        took,
        address,
        reachable,
        kubeconfig,
        token_file,
        token,
        node,
    } = started;
    let (kubeconfig, token_file) = (kubeconfig.display(), token_file.display());
    let token = match token {
        Some(token) => format!("--token {token}"),
        None => format!("--token <the text of {token_file}>"),
    };
    let node = match node {
        Some(name) => format!("this machine becomes node {name}"),
        None => "none on this machine (--disable-agent); join one to run pods".to_owned(),
    };
    let join = match reachable {
        true => format!("k3s-agent --server https://{address} {token}    (as root, on another machine)"),
        false => "this machine has no address in a network yet; the log says when it has one, and which".to_owned(),
    };
    format!(
        "Ready after {} ms at https://{address}
  kubeconfig  export KUBECONFIG={kubeconfig}    then: kubectl get nodes
  node        {node}
  token       {token_file}
  join        {join}",
        took.as_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_command_is_complete_for_a_person_and_without_a_secret_for_a_log() {
        let mut started = Started {
            took: Duration::from_millis(87),
            address: "192.0.2.1:6443",
            reachable: true,
            kubeconfig: Path::new("/etc/rancher/k3s/k3s.yaml"),
            token_file: Path::new("/var/lib/rancher/k3s/server/node-token"),
            token: Some("K10…::server:pw"),
            node: None,
        };
        assert!(ready(&started).contains("k3s-agent --server https://192.0.2.1:6443 --token K10…::server:pw"));
        started.token = None;
        assert!(!ready(&started).contains("pw"));
        assert!(ready(&started).contains("/server/node-token"));
        started.reachable = false;
        assert!(!ready(&started).contains("--server"), "nobody could join there");
    }
}
