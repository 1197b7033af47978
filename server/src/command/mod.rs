//! The commands that look after a cluster: through the API, with an administrator's kubeconfig, or at what a machine has on disk.
//!
//! Each has a file: what it asks, and the texts it prints (pure). `config` has their flags.

mod backup;
mod certificate;
mod duration;
mod kubeconfig;
mod node;
mod own_node;
mod rotate;
mod table;
mod token;

use agent::api::ApiError;
use anyhow::anyhow;

use crate::config::admin::{Admin, NodePasswordVerb, NodeVerb};

/// Runs a command; the answer is to be printed.
///
/// # Errors
/// What is wrong, and what to do.
pub async fn run(admin: Admin) -> anyhow::Result<String> {
    match admin {
        Admin::Token(command) => token::run(command).await,
        Admin::Certificate(command) => certificate::run(command.verb),
        Admin::Backup(command) => backup::back_up(command).await,
        Admin::Restore(command) => backup::restore(command).await,
        Admin::NodePassword(command) => {
            let cluster = kubeconfig::open(&command.cluster.kubeconfig)?;
            match command.verb {
                NodePasswordVerb::List { output } => node::list(&cluster, output).await,
                NodePasswordVerb::Delete { names } => node::delete(&cluster, &names).await,
            }
        }
        Admin::Node(command) => {
            let cluster = kubeconfig::open(&command.cluster.kubeconfig)?;
            let NodeVerb::Reenrol { name, duration } = command.verb;
            node::reenrol(&cluster, &name, &duration).await
        }
    }
}

/// The API's refusal, or why it could not be asked.
fn failed(what: &str, error: &ApiError) -> anyhow::Error {
    anyhow!("{what}: {error}")
}
