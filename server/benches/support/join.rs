//! A node that joins by the agent's own code.

use std::path::Path;
use std::sync::Arc;

use agent::config::{Config, Secret, ServerUrl};
use agent::join::{Address, Clock, Files, Identity, JoinError, Joined, Joiner};

/// Joins once, at this port of loopback; the machine's files are below `machine`.
pub async fn join(node: &str, token: &str, machine: &Path, port: u16) -> Result<Joined, JoinError> {
    let mut config = Config::new(ServerUrl::new("127.0.0.1", port), node);
    config.token = Some(Secret::new(token));
    let joiner = Joiner {
        config: &config,
        identity: &Identity::open(&machine.join("etc"), node, false).unwrap(),
        files: &Files::create(machine.join("agent")).unwrap(),
        address: Address {
            host: "127.0.0.1".to_owned(),
            port,
            shown: config.server.to_string(),
        },
        clock: Arc::new(Clock::default()),
    };
    joiner.once().await
}
