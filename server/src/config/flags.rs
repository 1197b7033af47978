//! The flags of `k3s server`, and what K3s has that this server has not.

use std::net::IpAddr;
use std::path::PathBuf;

use agent::config::flags::Foreign;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{ArgAction, Parser};

use super::ConfigError;

/// `k3s --help`.
pub const HELP: &str = "\
Amphipod: Kubernetes for small boxes, a drop-in for K3s.

  k3s server    The control plane: API, scheduler, controllers, and a node of its own (needs root;
                without a node, --disable-agent, it does not)
  k3s agent     Turns this machine into a worker node of a cluster

  k3s token           Makes, lists and deletes tokens that expire, for machines to join with; rotates the
                      cluster's own
  k3s certificate     Shows this machine's certificates, and has them made anew
  k3s node-password   Lists and deletes the records that bind a node's name to a machine
  k3s node reenrol    Lets a machine that was set up anew have its name back
  k3s backup, k3s restore    Copy the embedded datastore to a file, and back

  k3s server --help, k3s agent --help    all flags
  k3s --version

First steps:
  sudo k3s server                                          a cluster of one machine
  export KUBECONFIG=/etc/rancher/k3s/k3s.yaml              then: kubectl get nodes
  sudo cat /var/lib/rancher/k3s/server/node-token          the token for other machines
  sudo k3s agent --server https://SERVER:6443 --token …    on another machine: joins it

Settings may also stand in /etc/rancher/k3s/config.yaml, each under the name of its flag.
";

const EXAMPLES: &str = "\
Examples:
  sudo k3s server
  sudo k3s server --tls-san cluster.example.org --node-label site=roof
  k3s server --disable-agent --data-dir ~/.k3s     a control plane for trying things, without root

Files: the administrator's kubeconfig is /etc/rancher/k3s/k3s.yaml, the token for other machines is
/var/lib/rancher/k3s/server/node-token. Every flag may stand in /etc/rancher/k3s/config.yaml:

  tls-san:
    - cluster.example.org
  node-label: [site=roof]

The command line goes before the file, the file before the environment.";

/// Runs the control plane, and a node on this machine unless --disable-agent.
#[derive(Debug, Parser)]
#[command(name = "k3s server", bin_name = "k3s server", version, after_help = EXAMPLES, args_override_self = true)]
#[expect(clippy::struct_excessive_bools, reason = "K3s has these switches")]
pub(super) struct Server {
    /// Configuration file
    #[arg(long, short, env = "K3S_CONFIG_FILE", value_name = "FILE", default_value = agent::config::file::FILE)]
    pub(super) config: PathBuf,
    /// Where state is kept; default /var/lib/rancher/k3s, or ~/.rancher/k3s for other users than root
    #[arg(long, short, env = "K3S_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub(super) bind_address: IpAddr,
    /// Port of the API, and of the supervisor that nodes join at
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub(super) https_listen_port: u16,
    /// Address under which nodes reach this server; default is the node's address
    #[arg(long, value_name = "IP")]
    pub(super) advertise_address: Option<IpAddr>,
    /// Further name or address for the serving certificate: a load balancer, a public name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) tls_san: Vec<String>,
    /// The serving certificate takes in further addresses of this machine that clients come to; with =false any name, too
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = true, default_missing_value = "true")]
    pub(super) tls_san_security: bool,
    /// Secret of the cluster, made at the first start. Others can read a command line: prefer K3S_TOKEN or --token-file
    #[arg(long, short, env = "K3S_TOKEN", hide_env_values = true)]
    pub(super) token: Option<String>,
    /// File that holds the secret
    #[arg(long, env = "K3S_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Secret that agents join with, when they are not to know the cluster's. All servers keep it until another one is given;
    /// the cluster's own puts an end to it
    #[arg(long, env = "K3S_AGENT_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(super) agent_token: Option<String>,
    /// File that holds the agents' secret
    #[arg(long, env = "K3S_AGENT_TOKEN_FILE", value_name = "FILE")]
    pub(super) agent_token_file: Option<PathBuf>,
    /// Where the administrator's kubeconfig goes; default /etc/rancher/k3s/k3s.yaml, or ~/.kube/k3s.yaml
    #[arg(long, short = 'o', env = "K3S_KUBECONFIG_OUTPUT", value_name = "FILE")]
    pub(super) write_kubeconfig: Option<PathBuf>,
    /// Who may read it; default 0600
    #[arg(long, env = "K3S_KUBECONFIG_MODE", value_name = "MODE")]
    pub(super) write_kubeconfig_mode: Option<String>,
    /// What it calls the cluster, the user and the context
    #[arg(long, env = "K3S_KUBECONFIG_NAME", value_name = "NAME", default_value = "default", value_parser = NonEmptyStringValueParser::new())]
    pub(super) write_kubeconfig_name: String,
    /// No node on this machine: only the control plane, which needs no root
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    pub(super) disable_agent: bool,
    /// Packaged component that is not wanted
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) disable: Vec<String>,
    /// Nodes run no service proxy
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    pub(super) disable_kube_proxy: bool,
    /// Nodes enforce no network policies
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    pub(super) disable_network_policy: bool,
    /// Addresses of pods
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.42.0.0/16")]
    pub(super) cluster_cidr: Vec<String>,
    /// Addresses of services
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.43.0.0/16")]
    pub(super) service_cidr: Vec<String>,
    /// Ports of services on nodes
    #[arg(long, value_name = "FROM-TO", default_value = "30000-32767")]
    pub(super) service_node_port_range: String,
    /// Address of the cluster's DNS; default is the tenth of the services'
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(super) cluster_dns: Vec<String>,
    /// Domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub(super) cluster_domain: String,
    /// How pods of different nodes reach one another
    #[arg(long, value_name = "NAME", default_value = "vxlan")]
    pub(super) flannel_backend: String,
    /// Where the cluster's state is kept: postgres://…, mysql://…, https://… (etcd); default is embedded SQLite. Servers with
    /// the same datastore and token are one cluster. Others can read a command line: prefer K3S_DATASTORE_ENDPOINT or the file
    #[arg(long, env = "K3S_DATASTORE_ENDPOINT", value_name = "URL", hide_env_values = true)]
    pub(super) datastore_endpoint: Option<String>,
    /// Authorities that the datastore's certificate is verified with
    #[arg(long, env = "K3S_DATASTORE_CAFILE", value_name = "FILE")]
    pub(super) datastore_cafile: Option<PathBuf>,
    /// Certificate that this server shows the datastore
    #[arg(long, env = "K3S_DATASTORE_CERTFILE", value_name = "FILE")]
    pub(super) datastore_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "K3S_DATASTORE_KEYFILE", value_name = "FILE")]
    pub(super) datastore_keyfile: Option<PathBuf>,
    /// Name of this node; default is the host name. Two machines cannot share one
    #[arg(long, env = "K3S_NODE_NAME", value_name = "NAME")]
    pub(super) node_name: Option<String>,
    /// Append an id of this machine to the name
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    pub(super) with_node_id: bool,
    /// Address of this node; default is that of the default route
    #[arg(long, short = 'i', value_name = "IP", value_delimiter = ',')]
    pub(super) node_ip: Vec<String>,
    /// Address under which the outside reaches this node
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(super) node_external_ip: Vec<String>,
    /// Label of this node, set at its first registration only
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub(super) node_label: Vec<String>,
    /// Taint of this node, set at its first registration only
    #[arg(long, value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    pub(super) node_taint: Vec<String>,
    /// The resolv.conf that pods with dnsPolicy Default get; default is the host's
    #[arg(long, env = "K3S_RESOLV_CONF", value_name = "FILE")]
    pub(super) resolv_conf: Option<PathBuf>,
    /// Log more
    #[arg(long, env = "K3S_DEBUG", num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value_t = false, default_missing_value = "true")]
    pub(super) debug: bool,
    /// Log level: anything above 0 logs more
    #[arg(short, value_name = "LEVEL")]
    pub(super) v: Option<u8>,
}

/// Flags of K3s' server alone that tune what this one does another way or does not have; nothing depends on them. Those in
/// [`SWITCHES`] stand alone, the others have a value. Those of its node are the agent's.
pub(super) const PASSED_OVER: &[&str] = &[
    "advertise-port",
    "apiserver-bind-address",
    "apiserver-port",
    "default-local-storage-path",
    "disable-cloud-controller",
    "disable-etcd",
    "disable-helm-controller",
    "egress-selector-mode",
    "etcd-arg",
    "etcd-disable-snapshots",
    "etcd-expose-metrics",
    "etcd-s3",
    "etcd-s3-access-key",
    "etcd-s3-bucket",
    "etcd-s3-bucket-lookup-type",
    "etcd-s3-config-secret",
    "etcd-s3-endpoint",
    "etcd-s3-endpoint-ca",
    "etcd-s3-folder",
    "etcd-s3-insecure",
    "etcd-s3-proxy",
    "etcd-s3-region",
    "etcd-s3-retention",
    "etcd-s3-secret-key",
    "etcd-s3-session-token",
    "etcd-s3-skip-ssl-verify",
    "etcd-s3-timeout",
    "etcd-snapshot-compress",
    "etcd-snapshot-dir",
    "etcd-snapshot-name",
    "etcd-snapshot-reconcile-interval",
    "etcd-snapshot-retention",
    "etcd-snapshot-schedule-cron",
    "flannel-external-ip",
    "flannel-ipv6-masq",
    "helm-controller-arg",
    "helm-job-image",
    "kine-tls",
    "kube-apiserver-arg",
    "kube-cloud-controller-arg",
    "kube-cloud-controller-manager-arg",
    "kube-controller-arg",
    "kube-controller-manager-arg",
    "kube-scheduler-arg",
    "lb-server-port",
    "secrets-encryption-provider",
    "servicelb-namespace",
    "supervisor-metrics",
    "write-kubeconfig-group",
];

const SWITCHES: &[&str] = &[
    "disable-cloud-controller",
    "disable-etcd",
    "disable-helm-controller",
    "etcd-disable-snapshots",
    "etcd-expose-metrics",
    "etcd-s3",
    "etcd-s3-insecure",
    "etcd-s3-skip-ssl-verify",
    "etcd-snapshot-compress",
    "flannel-external-ip",
    "flannel-ipv6-masq",
    "kine-tls",
    "supervisor-metrics",
];

/// Flags of K3s that somebody relies on and that this server cannot honour, with what to do.
pub(super) const REFUSED: &[(&str, &str)] = &[
    (
        "server",
        "a server is not joined to another; give all servers the same --datastore-endpoint and the same token",
    ),
    (
        "cluster-init",
        "there is no embedded etcd; leave it out for one server with SQLite, or give several the same --datastore-endpoint",
    ),
    ("cluster-reset", "there is no embedded etcd to reset"),
    ("cluster-reset-restore-path", "there is no embedded etcd to restore"),
    (
        "supervisor-port",
        "the supervisor shares the API's port; use --https-listen-port",
    ),
    ("no-deploy", "K3s took it out; use --disable"),
    (
        "secrets-encryption",
        "secrets cannot be encrypted at rest yet; leave it out, or encrypt the disk",
    ),
    ("rootless", "pods need root; without root there is --disable-agent"),
    ("embedded-registry", "there is no embedded registry yet"),
    (
        "disable-apiserver",
        "the parts of the control plane cannot be split over machines",
    ),
    (
        "disable-controller-manager",
        "the parts of the control plane cannot be split over machines",
    ),
    (
        "disable-scheduler",
        "the parts of the control plane cannot be split over machines",
    ),
];

/// All that K3s knows and this command does not: the server's, then the node's.
pub(super) const FOREIGN: &[Foreign] = &[
    Foreign {
        passed_over: PASSED_OVER,
        switches: SWITCHES,
        refused: REFUSED,
    },
    agent::config::flags::AGENT,
];

/// Variables by which K3s takes flags that this command does not have.
///
/// Source: K3s v1.36.3, `pkg/cli/cmds/server.go` and `agent.go`.
pub(super) const VARIABLES: &[(&str, &str)] = &[
    ("K3S_URL", "server"),
    ("K3S_CLUSTER_INIT", "cluster-init"),
    ("K3S_CLUSTER_RESET", "cluster-reset"),
    ("K3S_SUPERVISOR_PORT", "supervisor-port"),
    ("K3S_APISERVER_PORT", "apiserver-port"),
    ("K3S_APISERVER_BIND_ADDRESS", "apiserver-bind-address"),
    ("K3S_KUBECONFIG_GROUP", "write-kubeconfig-group"),
    ("K3S_LB_SERVER_PORT", "lb-server-port"),
    ("K3S_SELINUX", "selinux"),
    ("K3S_SYSTEM_DEFAULT_REGISTRY", "system-default-registry"),
    ("K3S_VPN_AUTH", "vpn-auth"),
    ("K3S_VPN_AUTH_FILE", "vpn-auth-file"),
];

/// Warnings of the variables that are passed over; `value` looks one up. A flag in `args` goes before its variable.
///
/// # Errors
/// [`ConfigError::Refused`] for one that somebody relies on, without its value.
pub(super) fn pass_over_variables(
    args: &[String],
    value: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, ConfigError> {
    let given = |flag: &str| {
        let flag = format!("--{flag}");
        let mut names = args.iter().map(|arg| arg.split('=').next());
        names.any(|name| name == Some(&flag))
    };
    let mut warnings = Vec::new();
    for (variable, flag) in VARIABLES {
        let off = |value: &String| matches!(value.as_str(), "" | "0" | "f" | "F" | "false" | "FALSE" | "False");
        if given(flag) || value(variable).is_none_or(|value| off(&value)) {
            continue;
        }
        let mut refused = FOREIGN.iter().flat_map(|table| table.refused);
        match refused.find(|(name, _)| name == flag) {
            Some((_, why)) => return Err(ConfigError::Refused(format!("{variable}: {why}"))),
            None => warnings.push(format!("{variable} has no effect here")),
        }
    }
    Ok(warnings)
}

/// What to say of a first word that is no command.
pub(super) fn unknown_command(word: &str) -> String {
    let hint = match word {
        "kubectl" => "install kubectl beside it and set KUBECONFIG=/etc/rancher/k3s/k3s.yaml",
        "crictl" | "ctr" => "the node has its own runtime, without a CRI socket; use kubectl",
        "secrets-encrypt" | "etcd-snapshot" | "check-config" | "completion" => "it is not there yet",
        flag if flag.starts_with('-') => "flags come after the command: k3s server --flag",
        _ => "k3s --help tells which there are",
    };
    format!("k3s {word}: no such command; {hint}")
}
