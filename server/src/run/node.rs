//! This machine's own node: an agent in the same process, which joins as any other does, over loopback.

use std::future::Future;

use anyhow::bail;

use super::Server;
use crate::config::Config;

/// Runs the node until `shutdown`, or until it cannot go on.
pub(super) async fn run(_: &Config, _: &mut Server, _: impl Future<Output = ()>) -> anyhow::Result<()> {
    bail!(
        "a server cannot run a node of its own yet: start it with --disable-agent, and join this machine with k3s agent"
    )
}
