//! The commands that look after a cluster: `k3s token`, `k3s certificate`, `k3s node-password`, `k3s node`, `k3s backup`,
//! `k3s restore`.
//!
//! Names, flags and outputs of `k3s token` and `k3s certificate` are K3s'; the others are ours. What they do is `command`'s.

use std::path::PathBuf;

use agent::config::Secret;
use agent::join::services::Service;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// A table for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub struct Cluster {
    /// Kubeconfig of an administrator
    #[arg(
        long,
        env = "KUBECONFIG",
        value_name = "FILE",
        default_value = "/etc/rancher/k3s/k3s.yaml",
        global = true
    )]
    pub kubeconfig: PathBuf,
}

/// A command of this file.
#[derive(Debug)]
pub enum Admin {
    /// `k3s token`.
    Token(Token),
    /// `k3s certificate`.
    Certificate(Certificate),
    /// `k3s node-password`.
    NodePassword(NodePassword),
    /// `k3s node`.
    Node(Node),
    /// `k3s backup`.
    Backup(Backup),
    /// `k3s restore`.
    Restore(Restore),
}

/// Shows the certificates of this machine and has them made anew.
///
/// A server and an agent renew theirs by themselves while they run, long before they end; a new one is shown from the next
/// connection on. Certificate authorities are good for ten years.
#[derive(Debug, Parser)]
#[command(
    name = "k3s certificate",
    bin_name = "k3s certificate",
    version,
    arg_required_else_help = true
)]
pub struct Certificate {
    /// What to do.
    #[command(subcommand)]
    pub verb: CertificateVerb,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertificateVerb {
    /// Check k3s component certificates on disk
    #[command(after_help = "Example:\n  k3s certificate check --output table")]
    Check {
        /// Which.
        #[command(flatten)]
        of: CertificatesOf,
        /// Format output
        #[arg(long, short, value_enum, default_value_t)]
        output: CertificateOutput,
    },
    /// Rotate k3s component certificates on disk
    ///
    /// Keys and certificates are copied to a folder tls-TIME beside them and removed; the next start makes new ones. Certificate
    /// authorities, tokens and node passwords stay as they are.
    #[command(after_help = "Example:\n  systemctl stop k3s && k3s certificate rotate && systemctl start k3s")]
    Rotate {
        /// Which.
        #[command(flatten)]
        of: CertificatesOf,
    },
    /// Write updated k3s CA certificates to the datastore (this program cannot)
    #[command(name = "rotate-ca", hide = true)]
    RotateCa {
        /// Whatever K3s takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<String>,
    },
}

/// Whose certificates, and where.
#[derive(Args, Clone, Debug)]
pub struct CertificatesOf {
    /// Where this machine's server or agent keeps its state
    #[command(flatten)]
    pub data: DataDir,
    /// Service to manage certificates of, may be given several times; default is all of this machine. There are: admin,
    /// api-server, controller-manager, scheduler, supervisor, k3s-controller, k3s-server, cloud-controller, etcd, auth-proxy,
    /// kubelet, kube-proxy
    #[arg(long = "service", short, value_name = "SERVICE", value_delimiter = ',', value_parser = service)]
    pub services: Vec<Service>,
    /// Say also which files are not there
    #[arg(long)]
    pub debug: bool,
}

/// How certificates are shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum CertificateOutput {
    /// Lines of a log, on standard error.
    #[default]
    Text,
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
    /// YAML for programs.
    Yaml,
}

fn service(name: &str) -> Result<Service, String> {
    Service::named(name).ok_or_else(|| format!("service {name} is not recognized"))
}

const KEPT: &str = "What is needed beside the file: the cluster's token (server/token below the data directory). The cluster's
authorities and keys are in the backup, sealed with it. Secrets are in it, too: keep both safe, and not in the same place.

The server may run or be stopped; pods go on running either way.";

/// Copies the state of the embedded datastore to one file.
///
/// What is written is read back and checked before it is said to be there. PostgreSQL, MySQL and etcd are backed up with
/// their own tools.
#[derive(Debug, Parser)]
#[command(
    name = "k3s backup",
    bin_name = "k3s backup",
    version,
    after_help = format!("Example:\n  k3s backup /mnt/usb/monday.db\n\n{KEPT}")
)]
pub struct Backup {
    /// Where the server keeps its state
    #[command(flatten)]
    pub data: DataDir,
    /// Where to; default is a new file in server/db/backups below the data directory
    pub file: Option<PathBuf>,
}

/// Puts a backup in the place of the embedded datastore's state.
///
/// The file is checked whole first: one that is damaged, another program's or a newer version's is refused, and nothing has
/// changed then. The state that was there is kept in server/db/replaced below the data directory. Revisions go on far past
/// the old ones, so every client lists anew. A running server goes on with the restored state.
#[derive(Debug, Parser)]
#[command(
    name = "k3s restore",
    bin_name = "k3s restore",
    version,
    after_help = format!(
        "Example:\n  k3s restore /mnt/usb/monday.db\n\n\
         On another machine: k3s restore FILE, then k3s server --token TOKEN.\n\n{KEPT}"
    )
)]
pub struct Restore {
    /// Where the server keeps its state
    #[command(flatten)]
    pub data: DataDir,
    /// Name of this machine's node, if another than its host name. A stopped server's own node is let in again on a machine of
    /// its name that has not its password
    #[arg(long, env = "K3S_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// A file made by k3s backup, a snapshot in server/db/snapshots, or a copy of server/db of a stopped server
    pub file: PathBuf,
}

/// Makes, lists, deletes and rotates the tokens that machines join with.
///
/// A bootstrap token has an end and can be deleted; the cluster's own token (server/node-token below the data directory)
/// has none. Both join: k3s agent --server https://SERVER:6443 --token TOKEN.
#[derive(Debug, Parser)]
#[command(name = "k3s token", bin_name = "k3s token", version, arg_required_else_help = true)]
pub struct Token {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// What to do.
    #[command(subcommand)]
    pub verb: TokenVerb,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Makes a bootstrap token and prints it, in the form that pins this cluster's certificate authority
    #[command(after_help = "Example:\n  k3s token create --ttl 2h --description \"boxes of the north site\"")]
    Create {
        /// The token, such as abcdef.0123456789abcdef; default is a random one
        token: Option<String>,
        /// What it is for, for people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// Groups of who holds it, each beginning with system:bootstrappers:
        #[arg(
            long,
            value_name = "GROUP",
            value_delimiter = ',',
            default_value = "system:bootstrappers:k3s:default-node-token"
        )]
        groups: Vec<String>,
        /// Time until its end, such as 24h or 90m; 0 is for ever
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        ttl: String,
        /// What it is good for: signing, authentication
        #[arg(
            long,
            value_name = "USAGE",
            value_delimiter = ',',
            default_value = "signing,authentication"
        )]
        usages: Vec<String>,
    },
    /// Lists the bootstrap tokens, without their secrets
    List {
        /// Table or JSON
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Deletes bootstrap tokens: nodes that joined stay, nobody else joins with them
    Delete {
        /// Ids (the six characters before the dot) or whole tokens
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
    /// Prints a random bootstrap token; no server is asked, and none knows it
    Generate,
    /// Gives the cluster another token in place of its own (server/token); the old one joins nobody any more
    ///
    /// Asks a server, which takes the new token at once. Nodes that joined go on. Other servers, and this one if its token
    /// is in its flags or its configuration, have to be started again with the new token: a server that is not lets no
    /// machine join by the cluster's token. Bootstrap tokens (k3s token create) stay as they are.
    ///
    /// Keep the old token as long as there are backups of the datastore: those made before open with it only.
    #[command(after_help = ROTATE)]
    Rotate(Box<Rotate>),
}

const ROTATE: &str = "\
Others can read a command line: rather than --token and --new-token use the variables, the files, or standard input.

Examples, on a server as root:
  k3s token rotate                                a random token; then: cat /var/lib/rancher/k3s/server/token
  k3s token rotate --new-token-file -             asks for it, or reads it from a pipe
  K3S_NEW_TOKEN=… k3s token rotate";

/// What a rotation goes by.
#[derive(Args, Clone, Debug)]
pub struct Rotate {
    /// Present token of the cluster; default is that in server/token below the data directory
    #[arg(long, short, env = "K3S_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = secret)]
    pub token: Option<Secret>,
    /// File that holds it
    #[arg(long, env = "K3S_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Token from now on; default is a random one
    #[arg(long, env = "K3S_NEW_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = secret)]
    pub new_token: Option<Secret>,
    /// File that holds it; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "new_token")]
    pub new_token_file: Option<PathBuf>,
    /// Server to ask
    #[arg(
        long,
        short,
        env = "K3S_URL",
        value_name = "URL",
        default_value = "https://127.0.0.1:6443"
    )]
    pub server: String,
    /// Where this machine's server keeps its state
    #[command(flatten)]
    pub data: DataDir,
}

/// Where a server or an agent of this machine keeps its state.
#[derive(Args, Clone, Debug)]
pub struct DataDir {
    /// Where state is kept; default /var/lib/rancher/k3s, or ~/.rancher/k3s for other users than root
    #[arg(long, short, env = "K3S_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl DataDir {
    /// The directory; the default depends on whose it is.
    pub fn path(&self) -> PathBuf {
        let around = super::surroundings();
        let home = around.home.as_deref().filter(|_| !around.root);
        let path = self.data_dir.clone();
        path.unwrap_or_else(|| super::below_home(home, ".rancher/k3s", "/var/lib/rancher/k3s"))
    }
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Shows and deletes the records that bind a node's name to a machine.
///
/// The first machine that joins under a name has it, by the password in its /etc/rancher/node/password. A machine that comes
/// with another password is refused. Deleting the record lets the next one that asks have the name.
#[derive(Debug, Parser)]
#[command(
    name = "k3s node-password",
    bin_name = "k3s node-password",
    version,
    arg_required_else_help = true
)]
pub struct NodePassword {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// What to do.
    #[command(subcommand)]
    pub verb: NodePasswordVerb,
}

/// What to do with node passwords.
#[derive(Debug, Subcommand)]
pub enum NodePasswordVerb {
    /// Lists the records: never a password, nor its hash
    List {
        /// Table or JSON
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Deletes records; the Nodes and their pods stay
    Delete {
        /// Names of nodes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Lets a machine that was set up anew have its name back.
#[derive(Debug, Parser)]
#[command(name = "k3s node", bin_name = "k3s node", version, arg_required_else_help = true)]
pub struct Node {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// What to do.
    #[command(subcommand)]
    pub verb: NodeVerb,
}

/// What to do with a node.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Opens a window in which the node may register once with another password
    ///
    /// For a box that was reflashed: its Node, labels and pods stay. The first machine that joins under the name within the
    /// window has it, and the window closes. Every server of the cluster knows of it.
    #[command(after_help = "Example:\n  k3s node reenrol roof-3 --for 10m")]
    Reenrol {
        /// Name of the node
        name: String,
        /// How long, at most 24h
        #[arg(long = "for", value_name = "DURATION", default_value = "10m")]
        duration: String,
    },
}
