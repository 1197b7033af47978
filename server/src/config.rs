//! What the server runs on: command line, configuration file, environment and defaults, read once into [`Config`].
//!
//! Names, files and precedence are K3s': command line, then file, then environment; the reader of the file is the
//! agent's. The only place that reads the environment. What K3s has and this server has not yet is in `flags`: it is
//! passed over with a warning when nothing depends on it, and refused when somebody would.

pub mod admin;
mod flags;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use agent::config::flags::{Foreign, pass_over};
use agent::config::{Secret, Surroundings, Taint, file};
use agent::wire::join::{Cidr, ClusterConfig};
use clap::{CommandFactory as _, Parser as _};

use crate::store::endpoint::{self, Endpoint, Tls};

pub use agent::config::surroundings;
pub use flags::HELP;
use flags::Server;

/// What the program was called for.
#[derive(Debug)]
pub enum Command {
    /// `k3s server`.
    Server(Box<Config>),
    /// `k3s agent`.
    Agent(Box<agent::config::Config>),
    /// A command that looks after a running cluster.
    Admin(Box<admin::Admin>),
    /// Print this and be content.
    Print(String),
}

/// What `k3s server` runs on: checked, complete, never changed after start.
#[derive(Clone, Debug)]
pub struct Config {
    /// State; the server's is below `server/`, the node's below `agent/`.
    pub data_dir: PathBuf,
    /// Address that supervisor and API listen on.
    pub bind_address: IpAddr,
    /// Port of supervisor and API.
    pub https_port: u16,
    /// Under which others reach this server; `None`: the node's address.
    pub advertise_address: Option<IpAddr>,
    /// Further names and addresses of the serving certificate.
    pub tls_sans: Vec<String>,
    /// Clients do not choose any.
    pub tls_san_security: bool,
    /// The cluster's secret; `None`: the one on disk, else a random one.
    pub token: Option<Secret>,
    /// What agents join with, when that is another.
    pub agent_token: Option<Secret>,
    /// Where the cluster's state is kept.
    pub datastore: Datastore,
    /// Where the administrator's kubeconfig goes.
    pub kubeconfig: PathBuf,
    /// Its permission bits.
    pub kubeconfig_mode: u32,
    /// What it calls the cluster, the user and the context.
    pub kubeconfig_name: String,
    /// No node of its own.
    pub disable_agent: bool,
    /// Packaged components that are not wanted.
    pub disable: BTreeSet<String>,
    /// What all nodes follow.
    pub cluster: ClusterConfig,
    /// This machine as a node.
    pub node: Node,
    /// Where the service manager hears that we are ready (`NOTIFY_SOCKET`).
    pub notify: Option<PathBuf>,
    /// Log more.
    pub debug: bool,
    /// What was given and is passed over.
    pub warnings: Vec<String>,
}

/// Where the cluster's state is kept.
#[derive(Clone, Debug)]
pub struct Datastore {
    /// Which one.
    pub endpoint: Endpoint,
    /// How it is reached in TLS.
    pub tls: Tls,
}

impl Datastore {
    /// Whether other servers may be on it: an SQLite file is one server's own.
    pub fn is_shared(&self) -> bool {
        !matches!(self.endpoint, Endpoint::Sqlite { .. })
    }
}

/// This machine as a node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Lower case, before an id is appended.
    pub name: String,
    /// Append the machine's id to the name.
    pub with_id: bool,
    /// Addresses, main one first; empty: found at start.
    pub ips: Vec<IpAddr>,
    /// Addresses for the outside.
    pub external_ips: Vec<IpAddr>,
    /// Labels of the first registration.
    pub labels: Vec<(String, String)>,
    /// Taints of the first registration.
    pub taints: Vec<Taint>,
    /// The host's `resolv.conf`, if not the usual one.
    pub resolv_conf: Option<PathBuf>,
}

/// Why the program cannot start with what it was given. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Wrong flags or a call for help: clap's own words.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// Wrong flags of the node, or a configuration file or flag that neither program can use.
    #[error(transparent)]
    Agent(#[from] agent::config::ConfigError),
    /// No subcommand, or none of ours.
    #[error("{0}")]
    Command(String),
    /// What this server cannot do.
    #[error("{0}")]
    Refused(String),
    /// A value that cannot be right.
    #[error("{flag}: {why}")]
    Value {
        /// Which flag.
        flag: &'static str,
        /// What is wrong, and what is wanted.
        why: String,
    },
    /// An agent needs root.
    #[error(
        "running pods needs root (mounts, network, cgroups): run \"sudo k3s server\", or a server without a node of its own, \
         which needs no root: k3s server --disable-agent --data-dir DIR"
    )]
    Root,
}

/// Reads the command line (program name first).
///
/// # Errors
/// [`ConfigError`].
pub fn parse(args: impl IntoIterator<Item = OsString>, around: &Surroundings) -> Result<Command, ConfigError> {
    let mut args: Vec<String> = args
        .into_iter()
        .map(|arg| arg.into_string())
        .collect::<Result<_, _>>()
        .map_err(|arg| ConfigError::Command(format!("not UTF-8: {}", arg.display())))?;
    let word = args.get(1).cloned().unwrap_or_default();
    match word.as_str() {
        "server" => {
            args.remove(1);
            server(args, around).map(|config| Command::Server(Box::new(config)))
        }
        "agent" => {
            let config = agent::config::parse(args.into_iter().map(OsString::from), around)?;
            Ok(Command::Agent(Box::new(config)))
        }
        "token" | "certificate" | "node-password" | "node" | "backup" | "restore" => {
            args.remove(1);
            admin(&word, args).map(|admin| Command::Admin(Box::new(admin)))
        }
        "" | "help" | "--help" | "-h" => Ok(Command::Print(HELP.to_owned())),
        "version" | "--version" | "-v" => Ok(Command::Print(version())),
        other => Err(ConfigError::Command(flags::unknown_command(other))),
    }
}

/// As `k3s --version` prints it.
pub fn version() -> String {
    format!(
        "k3s version {} (amphipod {})\nkubernetes {}\n",
        crate::KUBERNETES_VERSION,
        env!("CARGO_PKG_VERSION"),
        crate::KUBERNETES_VERSION
    )
}

fn admin(word: &str, args: Vec<String>) -> Result<admin::Admin, ConfigError> {
    Ok(match word {
        "token" => admin::Admin::Token(admin::Token::try_parse_from(args)?),
        "certificate" => admin::Admin::Certificate(admin::Certificate::try_parse_from(args)?),
        "node-password" => admin::Admin::NodePassword(admin::NodePassword::try_parse_from(args)?),
        "backup" => admin::Admin::Backup(admin::Backup::try_parse_from(args)?),
        "restore" => admin::Admin::Restore(admin::Restore::try_parse_from(args)?),
        _ => admin::Admin::Node(admin::Node::try_parse_from(args)?),
    })
}

fn server(args: Vec<String>, around: &Surroundings) -> Result<Config, ConfigError> {
    let command = Server::command();
    let mut known = file::Flags::of(&command);
    known.add(flags::FOREIGN.iter().flat_map(Foreign::names));
    let (args, mut warnings) = file::apply(args, around.config_file.as_deref(), &around.usual_file, &known)?;
    warnings.extend(flags::pass_over_variables(&args, variable)?);
    let (args, passed_over) = pass_over(args, &command, flags::FOREIGN)?;
    warnings.extend(passed_over);
    resolve(Server::try_parse_from(args)?, around, warnings)
}

#[expect(clippy::disallowed_methods, reason = "this is config.rs")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn resolve(flags: Server, around: &Surroundings, warnings: Vec<String>) -> Result<Config, ConfigError> {
    let datastore = datastore(&flags)?;
    let home = around.home.as_deref().filter(|_| !around.root);
    if !around.root && !flags.disable_agent {
        return Err(ConfigError::Root);
    }
    let token = secret(flags.token.as_deref(), flags.token_file.as_deref(), "--token-file")?;
    let agent_token = secret(
        flags.agent_token.as_deref(),
        flags.agent_token_file.as_deref(),
        "--agent-token-file",
    )?;
    let cluster = cluster(&flags)?;
    let name = flags.node_name.clone().unwrap_or_else(|| around.hostname.clone());
    let name = name.to_ascii_lowercase();
    if !agent::wire::selector::is_dns_subdomain(&name) {
        let why = format!("{name:?} is not valid: use lower-case letters, digits, '-' and '.'");
        return Err(ConfigError::Value {
            flag: "--node-name",
            why,
        });
    }
    let node = Node {
        name,
        with_id: flags.with_node_id,
        ips: agent::config::addresses("--node-ip", &flags.node_ip)?,
        external_ips: agent::config::addresses("--node-external-ip", &flags.node_external_ip)?,
        labels: flags
            .node_label
            .iter()
            .map(|text| agent::config::label(text))
            .collect::<Result<_, _>>()?,
        taints: flags
            .node_taint
            .iter()
            .map(|text| agent::config::taint(text))
            .collect::<Result<_, _>>()?,
        resolv_conf: flags.resolv_conf,
    };
    Ok(Config {
        data_dir: flags
            .data_dir
            .unwrap_or_else(|| below_home(home, ".rancher/k3s", "/var/lib/rancher/k3s")),
        bind_address: flags.bind_address,
        https_port: flags.https_listen_port,
        advertise_address: flags.advertise_address,
        tls_sans: flags.tls_san,
        tls_san_security: flags.tls_san_security,
        token,
        agent_token,
        datastore,
        kubeconfig: flags
            .write_kubeconfig
            .unwrap_or_else(|| below_home(home, ".kube/k3s.yaml", "/etc/rancher/k3s/k3s.yaml")),
        kubeconfig_mode: mode(flags.write_kubeconfig_mode.as_deref())?,
        kubeconfig_name: flags.write_kubeconfig_name,
        disable_agent: flags.disable_agent,
        disable: flags.disable.into_iter().collect(),
        cluster,
        node,
        notify: variable("NOTIFY_SOCKET").map(PathBuf::from),
        debug: flags.debug || flags.v.is_some_and(|level| level > 0),
        warnings,
    })
}

fn datastore(flags: &Server) -> Result<Datastore, ConfigError> {
    let tls = Tls {
        ca: flags.datastore_cafile.clone(),
        cert: flags.datastore_certfile.clone(),
        key: flags.datastore_keyfile.clone(),
    };
    let text = flags.datastore_endpoint.as_deref().unwrap_or_default();
    let endpoint = endpoint::parse(text, !tls.is_empty()).map_err(|error| ConfigError::Value {
        flag: "--datastore-endpoint",
        why: error.to_string(),
    })?;
    Ok(Datastore { endpoint, tls })
}

fn cluster(flags: &Server) -> Result<ClusterConfig, ConfigError> {
    let ranges = |flag, texts: &[String]| -> Result<Vec<Cidr>, ConfigError> {
        let range = |text: &String| {
            text.trim()
                .parse()
                .map_err(|error: agent::wire::join::CidrError| error.to_string())
        };
        let all: Result<Vec<Cidr>, String> = texts.iter().map(range).collect();
        all.map_err(|why| ConfigError::Value { flag, why })
    };
    let service_cidrs = ranges("--service-cidr", &flags.service_cidr)?;
    let mut cluster_dns = agent::config::addresses("--cluster-dns", &flags.cluster_dns)?;
    if cluster_dns.is_empty() {
        cluster_dns = service_cidrs
            .first()
            .and_then(|range| nth(*range, 10))
            .into_iter()
            .collect();
    }
    let (node_port_base, node_port_size) = node_ports(&flags.service_node_port_range)?;
    Ok(ClusterConfig {
        cluster_cidrs: ranges("--cluster-cidr", &flags.cluster_cidr)?,
        service_cidrs,
        node_port_base,
        node_port_size,
        cluster_dns,
        cluster_domain: flags.cluster_domain.clone(),
        flannel_backend: flags.flannel_backend.clone(),
        https_port: flags.https_listen_port,
        supervisor_port: flags.https_listen_port,
        api_server_port: flags.https_listen_port.saturating_add(1),
        disable_kube_proxy: flags.disable_kube_proxy,
        disable_npc: flags.disable_network_policy,
        // None of these runs here yet; a K3s agent that was told otherwise would wait for them.
        disable_ccm: true,
        disable_service_lb: true,
        disable_helm_controller: true,
        ..ClusterConfig::default()
    })
}

/// The address `n` after the first of a range.
pub fn nth(range: Cidr, n: u8) -> Option<IpAddr> {
    let address = match range.address {
        IpAddr::V4(first) => IpAddr::V4(first.to_bits().checked_add(u32::from(n))?.into()),
        IpAddr::V6(first) => IpAddr::V6(first.to_bits().checked_add(u128::from(n))?.into()),
    };
    range.contains(address).then_some(address)
}

fn node_ports(text: &str) -> Result<(u16, u16), ConfigError> {
    let parse = || {
        let (first, last) = text.split_once('-')?;
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some((first, last.checked_sub(first)?.checked_add(1)?))
    };
    parse().ok_or_else(|| ConfigError::Value {
        flag: "--service-node-port-range",
        why: format!("{text:?} is no range of ports such as 30000-32767"),
    })
}

fn mode(text: Option<&str>) -> Result<u32, ConfigError> {
    let Some(text) = text else { return Ok(0o600) };
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| ConfigError::Value {
            flag: "--write-kubeconfig-mode",
            why: format!("{text:?} is no file mode such as 0600 or 644"),
        })
}

fn secret(given: Option<&str>, file: Option<&Path>, flag: &'static str) -> Result<Option<Secret>, ConfigError> {
    let text = match (given.filter(|text| !text.is_empty()), file) {
        (Some(text), _) => text.to_owned(),
        (None, None) => return Ok(None),
        (None, Some(path)) => {
            let why = |error: std::io::Error| format!("{}: {error}", path.display());
            std::fs::read_to_string(path).map_err(|error| ConfigError::Value { flag, why: why(error) })?
        }
    };
    Ok(Some(Secret::new(text.trim())).filter(|secret| !secret.expose().is_empty()))
}

fn below_home(home: Option<&Path>, path: &str, otherwise: &str) -> PathBuf {
    home.map_or_else(|| PathBuf::from(otherwise), |home| home.join(path))
}

#[cfg(test)]
mod tests;
