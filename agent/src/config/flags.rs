//! What K3s' command line has and this program has not: passed over with a warning when nothing depends on it, refused
//! with a cure when somebody would rely on it. Never silently, and never as an unknown flag.
//!
//! Source of the list: protocol 9.2; K3s v1.36 `pkg/cli/cmds/agent.go`.

use super::ConfigError;

/// Flags of K3s that a command does not have.
#[derive(Clone, Copy)]
pub struct Foreign {
    /// Without effect here, and nothing depends on them.
    pub passed_over: &'static [&'static str],
    /// Those of them that stand alone; the others have a value.
    pub switches: &'static [&'static str],
    /// What somebody relies on, and what to do instead.
    pub refused: &'static [(&'static str, &'static str)],
}

impl Foreign {
    /// The names of all of them.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.passed_over
            .iter()
            .copied()
            .chain(self.refused.iter().map(|(flag, _)| *flag))
    }

    fn refusal(&self, flag: &str) -> Option<&'static str> {
        self.refused
            .iter()
            .find(|(refused, _)| *refused == flag)
            .map(|(_, why)| *why)
    }
}

/// Those of a node.
pub const AGENT: Foreign = Foreign {
    passed_over: &[
        "airgap-extra-registry",
        "alsologtostderr",
        "bind-address",
        "default-runtime",
        "disable-default-registry-endpoint",
        "disable-selinux",
        "enable-pprof",
        "flannel-cni-conf",
        "flannel-conf",
        "flannel-iface",
        "image-credential-provider-bin-dir",
        "image-credential-provider-config",
        "kube-proxy-arg",
        "kubelet-arg",
        "log",
        "node-external-dns",
        "node-internal-dns",
        "nonroot-devices",
        "pause-image",
        "prefer-bundled-bin",
        "private-registry",
        "protect-kernel-defaults",
        "selinux",
        "snapshotter",
        "system-default-registry",
        "vmodule",
    ],
    switches: &[
        "alsologtostderr",
        "disable-default-registry-endpoint",
        "disable-selinux",
        "enable-pprof",
        "nonroot-devices",
        "prefer-bundled-bin",
        "protect-kernel-defaults",
        "selinux",
    ],
    refused: &[
        ("rootless", "pods need root: mounts, network and cgroups"),
        ("docker", "the node has its own container runtime; leave it out"),
        (
            "container-runtime-endpoint",
            "the node has its own container runtime; leave it out",
        ),
        (
            "image-service-endpoint",
            "the node has its own image store; put archives into <data-dir>/agent/images",
        ),
        (
            "vpn-auth",
            "no VPN is set up here; start it before the agent, and give its address with --node-ip",
        ),
        (
            "vpn-auth-file",
            "no VPN is set up here; start it before the agent, and give its address with --node-ip",
        ),
        (
            "no-flannel",
            "K3s took it out; --flannel-backend of the servers decides",
        ),
        (
            "cluster-secret",
            "K3s took it out; use --token, --token-file or K3S_TOKEN",
        ),
    ],
};

/// Takes out the flags that are passed over, with a warning each; those that the command has are its own.
///
/// # Errors
/// [`ConfigError::Refused`]. Of two tables that know a flag, the first decides.
pub fn pass_over(
    args: Vec<String>,
    command: &clap::Command,
    foreign: &[Foreign],
) -> Result<(Vec<String>, Vec<String>), ConfigError> {
    let (mut kept, mut warnings) = (Vec::new(), Vec::new());
    let has = |flag: &str| command.get_arguments().any(|arg| arg.get_long() == Some(flag));
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (flag, value) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (arg.as_str(), None),
        };
        let flag = match (flag, flag.strip_prefix("--")) {
            (_, Some(flag)) => flag,
            ("-l", _) => "log",
            ("-s", _) => "server",
            _ => "",
        };
        let known = |table: &&Foreign| table.names().any(|name| name == flag);
        let table = foreign.iter().find(known).filter(|_| !has(flag));
        let Some(table) = table else {
            kept.push(arg);
            continue;
        };
        match table.refusal(flag) {
            Some(why) if value != Some("false") => return Err(ConfigError::Refused(format!("--{flag}: {why}"))),
            Some(_) => {}
            None => {
                if value.is_none() && !table.switches.contains(&flag) {
                    args.next();
                }
            }
        }
        warnings.push(format!("--{flag} has no effect here"));
    }
    Ok((kept, warnings))
}
