//! What the agent runs on: command line, configuration file, environment and defaults, read once into [`Config`].
//!
//! The sources are arguments, so that tests need neither a process nor its environment. Names and meanings are K3s'
//! (`k3s agent --help`, v1.31 to v1.36). `file` turns the configuration file into arguments, `flags` has what K3s knows
//! and this program does not; the server uses both.

pub mod file;
pub mod flags;
mod yaml;

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::{ArgAction, CommandFactory as _, FromArgMatches as _, Parser};

pub use crate::wire::token::Secret;
use crate::wire::token::{Token, TokenError};

/// A server's address as the operator gave it: `https://host:port`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServerUrl {
    host: String,
    port: u16,
}

impl ServerUrl {
    /// Reads `https://host[:port][/]`; the port is 443 when missing.
    ///
    /// # Errors
    /// [`ConfigError::Url`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let error = || ConfigError::Url(text.into());
        let authority = text.trim_end_matches('/').strip_prefix("https://").ok_or_else(error)?;
        if authority.is_empty() || authority.contains(['/', '?', '#', '@', ' ']) {
            return Err(error());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| error())?),
            _ => (authority, 443),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bare {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_err() => return Err(error()),
            None if host.is_empty() || host.contains(':') => return Err(error()),
            _ => {}
        }
        Ok(Self {
            host: bare.unwrap_or(host).to_owned(),
            port,
        })
    }

    /// From its parts.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }

    /// Name or address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// A taint to register the node with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What the program runs on: checked, complete, never changed after start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server (or registration address) that was configured.
    pub server: ServerUrl,
    /// `None` only where a certificate from an earlier join may stand in.
    pub token: Option<Secret>,
    /// K3s' data directory; the agent's state is below `agent/`.
    pub data_dir: PathBuf,
    /// Sockets and such, gone after a reboot.
    pub run_dir: PathBuf,
    /// Where the node's password and id are kept, `/etc/rancher/node`.
    pub node_dir: PathBuf,
    /// Lower case, before an id is appended.
    pub node_name: String,
    /// Append the id of `node_dir` to the name.
    pub with_node_id: bool,
    /// Addresses to register, main one first; empty: found at start.
    pub node_ips: Vec<IpAddr>,
    /// Addresses for the outside.
    pub node_external_ips: Vec<IpAddr>,
    /// Labels set at the first registration.
    pub labels: Vec<(String, String)>,
    /// Taints set at the first registration.
    pub taints: Vec<Taint>,
    /// The kubelet's HTTPS port.
    pub kubelet_port: u16,
    /// Local load balancer; `None`: talk to `server` directly (the agent inside a server, `--disable-apiserver-lb`).
    pub balancer_port: Option<u16>,
    /// The host's `resolv.conf`, if not the usual one.
    pub resolv_conf: Option<PathBuf>,
    /// The service manager's socket: it is told when the node has joined.
    pub notify: Option<PathBuf>,
    /// Log more.
    pub debug: bool,
    /// What was given and is passed over.
    pub warnings: Vec<String>,
}

impl Config {
    /// An agent of `server` with K3s' defaults and this (lower-case) node name; for tests and for the agent inside a
    /// server, which change the fields they mean to.
    pub fn new(server: ServerUrl, node_name: impl Into<String>) -> Self {
        Self {
            server,
            token: None,
            data_dir: "/var/lib/rancher/k3s".into(),
            run_dir: "/run/k3s".into(),
            node_dir: "/etc/rancher/node".into(),
            node_name: node_name.into(),
            with_node_id: false,
            node_ips: Vec::new(),
            node_external_ips: Vec::new(),
            labels: Vec::new(),
            taints: Vec::new(),
            kubelet_port: 10_250,
            balancer_port: Some(6444),
            resolv_conf: None,
            notify: None,
            debug: false,
            warnings: Vec::new(),
        }
    }

    /// The local load balancer for an API that has another port than its supervisor: one below, as in K3s.
    pub const fn api_balancer_port(&self) -> Option<u16> {
        match self.balancer_port {
            Some(port) => Some(port.saturating_sub(1)),
            None => None,
        }
    }

    /// `<data>/agent`.
    pub fn agent_dir(&self) -> PathBuf {
        self.data_dir.join("agent")
    }
}

/// Why the program cannot start with what it was given. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Wrong flags, or a request for help: clap's own words, to be printed by [`clap::Error::exit`].
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// No server.
    #[error("--server is required: give the cluster's address, such as --server https://10.0.0.1:6443 (or K3S_URL)")]
    NoServer,
    /// No token and no certificate of an earlier join.
    #[error(
        "--token is required: use the text of {path} on a server (or K3S_TOKEN, or --token-file)",
        path = "/var/lib/rancher/k3s/server/node-token"
    )]
    NoToken,
    /// Not an address of a server.
    #[error("server address {0:?} is not of the form https://host:port")]
    Url(String),
    /// The token is malformed.
    #[error(
        "the token cannot be used (take the whole text of {path} on a server)",
        path = "/var/lib/rancher/k3s/server/node-token"
    )]
    Token(#[from] TokenError),
    /// The token file says nothing.
    #[error("the token file {} is empty: write the token into it", .0.display())]
    EmptyTokenFile(PathBuf),
    /// The token file is not readable.
    #[error("cannot read the token file {}", path.display())]
    TokenFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A name that Kubernetes does not take.
    #[error("node name {0:?} is not valid: use lower-case letters, digits, '-' and '.', or set --node-name")]
    NodeName(String),
    /// A label or taint that cannot be read.
    #[error("{what} {text:?} is not of the form {form}")]
    Pair {
        /// The flag.
        what: &'static str,
        /// What was given.
        text: String,
        /// What is expected.
        form: &'static str,
    },
    /// An address that cannot be read.
    #[error("{flag} {text:?} is no IP address: write one such as 192.168.1.10, or several with commas between them")]
    Address {
        /// The flag.
        flag: &'static str,
        /// What was given.
        text: String,
    },
    /// The configuration file cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What this program cannot do.
    #[error("{0}")]
    Refused(String),
    /// A word of the command line.
    #[error("not UTF-8: {0}")]
    Encoding(String),
}

/// What the world around the program says; tests make their own.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The host's name.
    pub hostname: String,
    /// The user id the program runs as.
    pub root: bool,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `K3S_CONFIG_FILE`.
    pub config_file: Option<PathBuf>,
    /// The configuration file that is read when there is one, [`file::FILE`].
    pub usual_file: PathBuf,
}

/// Turns this machine into a worker node of a K3s or Amphipod cluster.
///
/// It joins the cluster with a token, keeps a tunnel to every server, and runs the pods it is given. Containers keep
/// running when the agent stops or is upgraded.
#[derive(Debug, Parser)]
#[command(name = "k3s-agent", version, after_help = EXAMPLES, args_override_self = true)]
struct Args {
    /// Configuration file: every flag of this list, one a line; FILE.d/*.yaml is read after it
    #[arg(long, short, env = "K3S_CONFIG_FILE", value_name = "FILE", default_value = file::FILE)]
    config: PathBuf,
    /// Address of a server, or of a load balancer before all of them: https://host:6443
    #[arg(long, short, env = "K3S_URL", value_name = "URL")]
    server: Option<String>,
    /// Token of the cluster. Others can read a command line: prefer K3S_TOKEN or --token-file
    #[arg(long, short, env = "K3S_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that holds the token
    #[arg(long, env = "K3S_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where state is kept; default /var/lib/rancher/k3s, or ~/.rancher/k3s for other users than root
    #[arg(long, short, env = "K3S_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name of the node; default is the host name. Two machines cannot share one
    #[arg(long, env = "K3S_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Append an id of this machine to the name, so that equal host names do not collide
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    with_node_id: bool,
    /// Address to register; default is the one that leads to the server
    #[arg(long, short = 'i', value_name = "IP", value_delimiter = ',')]
    node_ip: Vec<String>,
    /// Address under which the outside reaches this node
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    node_external_ip: Vec<String>,
    /// Label to register the node with, at its first registration only
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    node_label: Vec<String>,
    /// Taint to register the node with, at its first registration only
    #[arg(long, value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    node_taint: Vec<String>,
    /// Port of the local load balancer to the servers
    #[arg(long, env = "K3S_LB_SERVER_PORT", value_name = "PORT", default_value_t = 6444)]
    lb_server_port: u16,
    /// Talk to --server directly, without the local load balancer
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    disable_apiserver_lb: bool,
    /// The resolv.conf that pods with dnsPolicy Default get; default is the host's
    #[arg(long, env = "K3S_RESOLV_CONF", value_name = "FILE")]
    resolv_conf: Option<PathBuf>,
    /// Log more
    #[arg(long, env = "K3S_DEBUG", num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    debug: bool,
    /// Log level: anything above 0 logs more
    #[arg(short, value_name = "LEVEL")]
    v: Option<u8>,
    /// systemd's socket for `Type=notify`
    #[arg(long, env = "NOTIFY_SOCKET", hide = true)]
    notify_socket: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  K3S_URL=https://10.0.0.1:6443 K3S_TOKEN=K10… k3s-agent
  k3s-agent --server https://10.0.0.1:6443 --token-file /etc/rancher/token --node-label site=roof

The token is in /var/lib/rancher/k3s/server/node-token on any server. It is needed once: later starts may do without.

Every flag may stand in /etc/rancher/k3s/config.yaml, under its name:
  server: https://10.0.0.1:6443
  token-file: /etc/rancher/token
  node-label:
    - site=roof
The command line goes before the file, the file before the environment.

Images come from archives (.tar, .tar.gz) in <data-dir>/agent/images. Flags of K3s that are not listed are either passed
over with a warning or refused with what to do instead.";

/// What this machine says.
pub fn surroundings() -> Surroundings {
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    #[expect(clippy::disallowed_methods, reason = "this is the file that reads the environment")]
    let variable = |name| {
        std::env::var_os(name)
            .filter(|text| !text.is_empty())
            .map(PathBuf::from)
    };
    Surroundings {
        hostname: hostname.unwrap_or_default(),
        root: nix::unistd::geteuid().is_root(),
        home: variable("HOME"),
        config_file: variable("K3S_CONFIG_FILE"),
        usual_file: file::FILE.into(),
    }
}

/// Tells the service manager that the agent is up, if there is one.
///
/// Source: systemd, `sd_notify(3)`; an address that begins with `@` is abstract.
pub fn notify_ready(socket: Option<&Path>) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = socket else { return };
    let address = match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1\n", &address));
    if let Err(error) = sent {
        tracing::warn!(error = %error, "cannot tell the service manager that the agent is up");
    }
}

/// Reads the command line `args` (program name first; a subcommand `agent` may follow, as in `k3s agent`).
/// Other variables of the environment are clap's to read: this is the one place of the program that does.
///
/// # Errors
/// [`ConfigError`].
pub fn parse(args: impl IntoIterator<Item = OsString>, around: &Surroundings) -> Result<Config, ConfigError> {
    let text = |arg: OsString| {
        arg.into_string()
            .map_err(|arg| ConfigError::Encoding(arg.display().to_string()))
    };
    let mut args: Vec<String> = args.into_iter().map(text).collect::<Result<_, _>>()?;
    let mut command = Args::command();
    if args.get(1).is_some_and(|word| word == "agent") {
        args.remove(1);
        command = command.bin_name("k3s agent");
    }
    let mut known = file::Flags::of(&command);
    known.add(flags::AGENT.names());
    let (args, mut warnings) = file::apply(args, around.config_file.as_deref(), &around.usual_file, &known)?;
    let (args, passed_over) = flags::pass_over(args, &command, &[flags::AGENT])?;
    warnings.extend(passed_over);
    let args = Args::from_arg_matches(&command.try_get_matches_from(args)?)?;
    let mut config = resolve(args, around)?;
    config.warnings = warnings;
    Ok(config)
}

fn resolve(args: Args, around: &Surroundings) -> Result<Config, ConfigError> {
    let server = ServerUrl::parse(&args.server.ok_or(ConfigError::NoServer)?)?;
    let node_name = args
        .node_name
        .unwrap_or_else(|| around.hostname.clone())
        .to_ascii_lowercase();
    check_name(&node_name)?;
    let home = || {
        around
            .home
            .as_ref()
            .filter(|_| !around.root)
            .map(|home| home.join(".rancher/k3s"))
    };
    let data_dir = args.data_dir.or_else(home);
    let mut config = Config::new(server, node_name);
    config.data_dir = data_dir.unwrap_or(config.data_dir);
    config.token = match (args.token, args.token_file.as_deref()) {
        (Some(text), _) => Some(text),
        (None, Some(path)) => Some(token_file(path)?),
        (None, None) => None,
    }
    .filter(|text| !text.is_empty())
    .map(Secret::new);
    match &config.token {
        Some(token) => drop(Token::parse(token.expose())?),
        None if joined_before(&config) => {}
        None => {
            return Err(args
                .token_file
                .map_or(ConfigError::NoToken, ConfigError::EmptyTokenFile));
        }
    }
    config.with_node_id = args.with_node_id;
    config.node_ips = addresses("--node-ip", &args.node_ip)?;
    config.node_external_ips = addresses("--node-external-ip", &args.node_external_ip)?;
    config.labels = args
        .node_label
        .iter()
        .map(|text| label(text))
        .collect::<Result<_, _>>()?;
    config.taints = args
        .node_taint
        .iter()
        .map(|text| taint(text))
        .collect::<Result<_, _>>()?;
    config.balancer_port = (!args.disable_apiserver_lb).then_some(args.lb_server_port);
    config.resolv_conf = args.resolv_conf;
    config.debug = args.debug || args.v.is_some_and(|level| level > 0);
    config.notify = args.notify_socket;
    Ok(config)
}

fn joined_before(config: &Config) -> bool {
    let agent = config.agent_dir();
    ["client-kubelet.crt", "client-kubelet.key"]
        .iter()
        .all(|file| agent.join(file).is_file())
}

fn token_file(path: &Path) -> Result<String, ConfigError> {
    let read = std::fs::read_to_string(path);
    read.map(|text| text.trim().to_owned())
        .map_err(|source| ConfigError::TokenFile {
            path: path.into(),
            source,
        })
}

/// A DNS subdomain, as Kubernetes wants object names. Source: apimachinery v1.36 `IsDNS1123Subdomain`.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| match part.as_bytes() {
        [first, .., last] => edge(*first) && edge(*last) && part.bytes().all(|byte| edge(byte) || byte == b'-'),
        [single] => edge(*single),
        [] => false,
    };
    let valid = name.len() <= 253 && name.split('.').all(part);
    valid.then_some(()).ok_or_else(|| ConfigError::NodeName(name.into()))
}

/// Reads addresses as `flag` (`--node-ip`) has them.
///
/// # Errors
/// [`ConfigError`] names the flag and the form.
pub fn addresses(flag: &'static str, texts: &[String]) -> Result<Vec<IpAddr>, ConfigError> {
    let one = |text: &String| {
        let text = text.trim();
        text.parse().map_err(|_| ConfigError::Address {
            flag,
            text: text.to_owned(),
        })
    };
    texts.iter().map(one).collect()
}

/// Reads a label as `--node-label` has it.
///
/// # Errors
/// [`ConfigError`] names the flag and the form.
pub fn label(text: &str) -> Result<(String, String), ConfigError> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key {
        "" => Err(ConfigError::Pair {
            what: "--node-label",
            text: text.into(),
            form: "key=value",
        }),
        _ => Ok((key.into(), value.into())),
    }
}

/// Reads a taint as `--node-taint` has it.
///
/// # Errors
/// [`ConfigError`] names the flag and the form.
pub fn taint(text: &str) -> Result<Taint, ConfigError> {
    let error = || ConfigError::Pair {
        what: "--node-taint",
        text: text.into(),
        form: "key=value:effect, the effect being NoSchedule, PreferNoSchedule or NoExecute",
    };
    let (pair, effect) = text.rsplit_once(':').ok_or_else(error)?;
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let known = matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
    match known && !key.is_empty() {
        true => Ok(Taint {
            key: key.into(),
            value: value.into(),
            effect: effect.into(),
        }),
        false => Err(error()),
    }
}

#[cfg(test)]
mod tests;
