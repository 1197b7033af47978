//! Command lines and configuration files as operators write them.

use std::fs;

use super::*;
use crate::scratch::Scratch;

fn around(root: bool) -> Surroundings {
    Surroundings {
        hostname: "Box-1".into(),
        root,
        home: Some("/home/me".into()),
        ..Surroundings::default()
    }
}

/// Reads a command line with this configuration file.
fn with(file: &str, line: &str, root: bool) -> Result<Config, ConfigError> {
    let scratch = Scratch::new(&format!("config-{:?}", std::thread::current().id()));
    let path = scratch.0.join("config.yaml");
    fs::write(&path, file).unwrap();
    let line = format!("k3s server --config {} {line}", path.display());
    match parse(line.split_whitespace().map(OsString::from), &around(root))? {
        Command::Server(config) => Ok(*config),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_flags_it_is_k3s_as_installed() {
    let config = with("", "", true).unwrap();
    assert_eq!(config.data_dir, Path::new("/var/lib/rancher/k3s"));
    assert_eq!(config.kubeconfig, Path::new("/etc/rancher/k3s/k3s.yaml"));
    assert_eq!(config.kubeconfig_mode, 0o600);
    assert_eq!(
        (config.https_port, config.bind_address.to_string().as_str()),
        (6443, "0.0.0.0")
    );
    assert_eq!(config.node.name, "box-1");
    assert_eq!(config.cluster.cluster_cidrs, ["10.42.0.0/16".parse().unwrap()]);
    assert_eq!(config.cluster.service_cidrs, ["10.43.0.0/16".parse().unwrap()]);
    assert_eq!(config.cluster.cluster_dns, ["10.43.0.10".parse::<IpAddr>().unwrap()]);
    assert!(!config.disable_agent && config.token.is_none() && config.warnings.is_empty());
}

#[test]
fn flags_mean_what_they_mean_in_k3s() {
    let config = with(
        "",
        "-d /data --https-listen-port 7443 --bind-address 127.0.0.1 --advertise-address 192.0.2.1 -t pw --agent-token apw \
         -o /tmp/k.yaml --write-kubeconfig-mode 644 --disable traefik,servicelb --disable coredns --tls-san a,b --tls-san-security=false \
         --cluster-cidr 10.0.0.0/16 --service-cidr=10.1.0.0/16 --cluster-domain x.y --node-label a=b --node-taint k=v:NoSchedule \
         --with-node-id --service-node-port-range 1000-1999 -v 2 --node-ip 192.0.2.1",
        true,
    )
    .unwrap();
    assert_eq!(config.data_dir, Path::new("/data"));
    assert_eq!((config.https_port, config.cluster.https_port), (7443, 7443));
    assert_eq!(config.token.unwrap().expose(), "pw");
    assert_eq!(config.agent_token.unwrap().expose(), "apw");
    assert_eq!((config.kubeconfig_mode, config.disable.len()), (0o644, 3));
    assert_eq!(
        (config.tls_sans, config.tls_san_security),
        (vec!["a".to_owned(), "b".to_owned()], false)
    );
    assert_eq!(config.cluster.cluster_dns, ["10.1.0.10".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        (config.cluster.node_port_base, config.cluster.node_port_size),
        (1000, 1000)
    );
    assert!(config.node.with_id && config.debug);
    assert_eq!(
        (
            config.node.labels.len(),
            config.node.taints.len(),
            config.node.ips.len()
        ),
        (1, 1, 1)
    );
}

#[test]
fn the_file_has_the_names_of_the_flags_and_the_command_line_goes_before_it() {
    let file = "
write-kubeconfig-mode: \"0644\"
tls-san:
  - one
  - two
node-label: [a=b]
https-listen-port: 7000
disable-agent: true
d: /from-file
flannel-iface: eth0
no-such-flag: 1
";
    let config = with(file, "--tls-san three --https-listen-port=8000", true).unwrap();
    assert_eq!((config.kubeconfig_mode, config.https_port), (0o644, 8000));
    assert_eq!(
        config.tls_sans,
        ["three"],
        "a list on the command line replaces the file's"
    );
    assert_eq!(config.data_dir, Path::new("/from-file"));
    assert!(config.disable_agent);
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(
        !with("disable-agent: true", "--disable-agent=false", true)
            .unwrap()
            .disable_agent
    );
}

#[test]
fn drop_ins_come_after_the_file_and_may_add_to_it() {
    let scratch = Scratch::new("config-dropins");
    let path = scratch.0.join("config.yaml");
    fs::create_dir(scratch.0.join("config.yaml.d")).unwrap();
    for (name, text) in [
        ("config.yaml", "tls-san: [a]\ncluster-domain: first\n"),
        ("config.yaml.d/20.yml", "tls-san+: c\n"),
        ("config.yaml.d/10.yaml", "tls-san+: [b]\ncluster-domain: second\n"),
        ("config.yaml.d/30.txt", "not yaml: ["),
    ] {
        fs::write(scratch.0.join(name), text).unwrap();
    }
    let line = ["k3s", "server", "-c", path.to_str().unwrap()].map(OsString::from);
    let Command::Server(config) = parse(line, &around(true)).unwrap() else {
        panic!()
    };
    assert_eq!(config.tls_sans, ["a", "b", "c"]);
    assert_eq!(config.cluster.cluster_domain, "second");
}

#[test]
fn without_root_there_is_a_control_plane_and_no_node() {
    let error = with("", "", false).unwrap_err();
    assert!(matches!(error, ConfigError::Root));
    assert!(error.to_string().contains("--disable-agent"));
    let config = with("", "--disable-agent", false).unwrap();
    assert_eq!(config.data_dir, Path::new("/home/me/.rancher/k3s"));
    assert_eq!(config.kubeconfig, Path::new("/home/me/.kube/k3s.yaml"));
}

#[test]
fn what_is_missing_is_passed_over_or_refused_but_never_silently() {
    let config = with(
        "",
        "--snapshotter native --selinux --kubelet-arg=a=b --secrets-encryption=false --debug",
        true,
    );
    let config = config.unwrap();
    assert_eq!(config.warnings.len(), 4, "{:?}", config.warnings);
    assert!(config.debug, "what follows a switch is not taken for its value");
    for (line, hint) in [
        ("--datastore-endpoint oracle://u:hidden@h/db", "postgres"),
        ("--datastore-endpoint u:hidden@h/db", "postgres://"),
        ("--server https://a:6443", "--datastore-endpoint"),
        ("-s https://a:6443", "--datastore-endpoint"),
        ("--cluster-init", "etcd"),
        ("--secrets-encryption", "encrypt"),
        ("--cluster-cidr nonsense", "10.42.0.0/16"),
        ("--service-node-port-range 5-1", "30000-32767"),
        ("--write-kubeconfig-mode 9", "0600"),
        ("--node-name a_b", "--node-name"),
        ("--token-file /nonexistent", "/nonexistent"),
        ("--tls-sans x", "--tls-san"),
    ] {
        let error = with("", line, true).unwrap_err().to_string();
        assert!(error.contains(hint), "{line}: {error}");
        assert!(!error.contains("hidden"), "a secret is not repeated: {error}");
    }
    assert!(
        with("- a\n- b\n", "", true)
            .unwrap_err()
            .to_string()
            .contains("config.yaml")
    );
}

#[test]
fn every_flag_of_k3s_works_or_is_named() {
    let named: Vec<&str> = flags::FOREIGN.iter().flat_map(Foreign::names).collect();
    let command = Server::command();
    for flag in K3S.split_whitespace() {
        let ours = command.get_arguments().any(|arg| arg.get_long() == Some(flag));
        assert!(ours || named.contains(&flag), "--{flag} is unknown");
    }
    for flag in flags::PASSED_OVER {
        assert_eq!(
            named.iter().filter(|name| *name == flag).count(),
            1,
            "{flag} stands once"
        );
    }
}

/// K3s v1.36.3, `pkg/cli/cmds/server.go`; some of older releases, too.
const K3S: &str = "config debug vmodule log alsologtostderr bind-address https-listen-port supervisor-port advertise-address \
    advertise-port tls-san tls-san-security data-dir cluster-cidr service-cidr service-node-port-range cluster-dns cluster-domain \
    flannel-backend flannel-ipv6-masq flannel-external-ip egress-selector-mode servicelb-namespace write-kubeconfig \
    write-kubeconfig-mode write-kubeconfig-group write-kubeconfig-name apiserver-port apiserver-bind-address kube-controller-arg \
    kube-cloud-controller-arg etcd-snapshot-reconcile-interval helm-job-image helm-controller-arg token token-file agent-token agent-token-file \
    server cluster-init cluster-reset cluster-reset-restore-path kube-apiserver-arg kube-controller-manager-arg kube-scheduler-arg \
    kube-cloud-controller-manager-arg etcd-arg datastore-endpoint datastore-cafile datastore-certfile datastore-keyfile \
    etcd-expose-metrics etcd-disable-snapshots etcd-snapshot-name etcd-snapshot-schedule-cron etcd-snapshot-retention \
    etcd-snapshot-dir etcd-snapshot-compress etcd-s3 etcd-s3-endpoint etcd-s3-endpoint-ca etcd-s3-skip-ssl-verify \
    etcd-s3-access-key etcd-s3-secret-key etcd-s3-session-token etcd-s3-bucket etcd-s3-bucket-lookup-type etcd-s3-region \
    etcd-s3-folder etcd-s3-proxy etcd-s3-config-secret etcd-s3-insecure etcd-s3-timeout etcd-s3-retention \
    default-local-storage-path disable disable-scheduler disable-cloud-controller disable-kube-proxy disable-network-policy \
    disable-helm-controller disable-apiserver disable-controller-manager disable-etcd disable-agent embedded-registry \
    supervisor-metrics secrets-encryption secrets-encryption-provider enable-pprof rootless prefer-bundled-bin kine-tls vpn-auth \
    vpn-auth-file no-deploy no-flannel cluster-secret";

#[test]
fn a_variable_of_k3s_is_no_more_passed_over_in_silence_than_its_flag() {
    let named: Vec<&str> = flags::FOREIGN.iter().flat_map(Foreign::names).collect();
    for (variable, flag) in flags::VARIABLES {
        assert!(named.contains(flag), "{variable} is that of --{flag}");
    }
    let with = |variable: &str, value: &str, line: &str| {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        flags::pass_over_variables(&args, |name| (name == variable).then(|| value.to_owned()))
            .map_err(|error| error.to_string())
    };
    let refused = with("K3S_URL", "https://hidden:6443", "k3s").unwrap_err();
    assert!(
        refused.starts_with("K3S_URL: a server is not joined") && !refused.contains("hidden"),
        "{refused}"
    );
    assert!(with("K3S_CLUSTER_INIT", "true", "k3s").is_err());
    assert_eq!(with("K3S_CLUSTER_INIT", "false", "k3s"), Ok(vec![]));
    assert_eq!(with("K3S_CLUSTER_INIT", "true", "k3s --cluster-init=false"), Ok(vec![]));
    let passed_over = with("K3S_KUBECONFIG_GROUP", "admins", "k3s").unwrap();
    assert_eq!(passed_over, ["K3S_KUBECONFIG_GROUP has no effect here"]);
    assert_eq!(with("K3S_TOKEN", "t", "k3s"), Ok(vec![]), "a flag of this command");
}

#[test]
fn a_datastore_is_read_and_its_password_is_not_printed() {
    let config = with(
        "datastore-cafile: /ca.pem\n",
        "--datastore-endpoint postgres://u:hidden@h/db",
        true,
    )
    .unwrap();
    assert!(config.datastore.is_shared());
    assert_eq!(config.datastore.tls.ca.as_deref(), Some(Path::new("/ca.pem")));
    assert!(!format!("{config:?}").contains("hidden"));
    for line in ["", "--datastore-endpoint sqlite:///tmp/state.db"] {
        assert!(!with("", line, true).unwrap().datastore.is_shared(), "{line}");
    }
}

#[test]
fn other_words_are_answered_with_what_to_do() {
    for (line, hint) in [
        ("k3s kubectl get pods", "KUBECONFIG"),
        ("k3s --debug", "after the command"),
        ("k3s sever", "k3s --help"),
    ] {
        let error = parse(line.split(' ').map(OsString::from), &around(true)).unwrap_err();
        assert!(error.to_string().contains(hint), "{line}: {error}");
    }
    let Command::Print(text) = parse(["k3s", "--version"].map(OsString::from), &around(true)).unwrap() else {
        panic!()
    };
    assert!(text.starts_with("k3s version v1."));
}

#[test]
fn the_node_of_the_agent_command_is_the_agents_to_read() {
    let line = "k3s agent --server https://a:6443 --token pw --node-name n -c /dev/null --snapshotter x";
    let Command::Agent(config) = parse(line.split(' ').map(OsString::from), &around(true)).unwrap() else {
        panic!()
    };
    assert_eq!(config.node_name, "n");
}

#[test]
fn every_help_shows_how_its_own_command_is_called() {
    for (line, usage) in [
        ("server --help", "Usage: k3s server ["),
        ("server --nope", "Usage: k3s server "),
        ("agent --help", "Usage: k3s agent ["),
        ("token --help", "Usage: k3s token ["),
        ("token create --help", "Usage: k3s token create ["),
        ("certificate --help", "Usage: k3s certificate <"),
        ("certificate check --help", "Usage: k3s certificate check ["),
        ("node-password delete --help", "Usage: k3s node-password delete ["),
        ("node reenrol --help", "Usage: k3s node reenrol ["),
        ("backup --help", "Usage: k3s backup ["),
        ("restore --help", "Usage: k3s restore ["),
    ] {
        let args = ["/usr/local/bin/k3s"].into_iter().chain(line.split_whitespace());
        let error = parse(args.map(OsString::from), &around(true)).unwrap_err();
        assert!(error.to_string().contains(usage), "{line}: {error}");
    }
}
