//! Command lines, environment and configuration files as operators write them.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn around() -> Surroundings {
    Surroundings {
        hostname: "Pi-4".into(),
        root: true,
        home: Some("/home/me".into()),
        ..Surroundings::default()
    }
}

/// Reads a command line; these are `config.yaml` and its drop-ins, there as usual or asked for.
fn with_files(files: &[(&str, &str)], asked: bool, line: &str) -> Result<Config, ConfigError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("amphipod-config-{}-{next}", std::process::id()));
    fs::create_dir_all(folder.join("config.yaml.d")).unwrap();
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    let file = folder.join("config.yaml");
    let around = Surroundings {
        config_file: asked.then(|| file.clone()),
        usual_file: file,
        ..around()
    };
    let config = read(line, &around);
    fs::remove_dir_all(&folder).unwrap();
    config
}

fn read(line: &str, around: &Surroundings) -> Result<Config, ConfigError> {
    parse(line.split(' ').map(OsString::from), around)
}

#[test]
fn a_command_line_becomes_a_config() {
    let config = read(
        "k3s agent --server https://10.0.0.1:6443/ -t pw --node-label a=b,c --node-taint k=v:NoExecute \
         --node-taint only:NoSchedule -i 10.0.0.5,fd00::5 --lb-server-port 6500 --lb-server-port 7000 --with-node-id",
        &around(),
    )
    .unwrap();
    assert_eq!(config.server.to_string(), "https://10.0.0.1:6443");
    assert_eq!(config.node_name, "pi-4");
    assert!(config.with_node_id);
    assert_eq!(config.labels, [("a".into(), "b".into()), ("c".into(), String::new())]);
    assert_eq!(config.taints.len(), 2);
    assert_eq!(config.node_ips.len(), 2);
    assert_eq!(config.balancer_port, Some(7000));
    assert_eq!(config.data_dir, Path::new("/var/lib/rancher/k3s"));
}

#[test]
fn others_than_root_keep_state_at_home() {
    let around = Surroundings {
        root: false,
        ..around()
    };
    let config = read("k3s-agent -s https://a:1 -t pw", &around).unwrap();
    assert_eq!(config.data_dir, Path::new("/home/me/.rancher/k3s"));
    let config = read("k3s-agent -s https://a:1 -t pw -d /data", &around).unwrap();
    assert_eq!(config.data_dir, Path::new("/data"));
}

#[test]
fn what_cannot_work_is_refused_with_a_cure() {
    let cases = [
        ("k3s-agent -t pw", "--server is required"),
        ("k3s-agent -s https://a:1 -d /nonexistent", "--token is required"),
        ("k3s-agent -s http://a:1 -t pw", "https://host:port"),
        ("k3s-agent -s https://a:1 -t K10abc", "server/node-token on a server"),
        (
            "k3s-agent -s https://a:1 --token-file /dev/null -d /nonexistent",
            "file /dev/null is empty",
        ),
        ("k3s-agent -s https://a:1 -t pw --node-name a_b", "--node-name"),
        ("k3s-agent -s https://a:1 -t pw --node-taint x", "--node-taint"),
        ("k3s-agent -s https://a:1 -t pw --node-taint a=b:No", "PreferNoSchedule"),
        (
            "k3s-agent -s https://a:1 -t pw --node-ip 10.0.0.1,x",
            "--node-ip \"x\" is no IP address",
        ),
        (
            "k3s-agent -s https://a:1 -t pw --node-external-ip x",
            "--node-external-ip \"x\"",
        ),
        ("k3s-agent -s https://a:1 --token-file /nonexistent", "/nonexistent"),
        ("k3s-agent -s https://a:1 -t pw --sever x", "--server"),
    ];
    for (line, hint) in cases {
        let error = read(line, &around()).unwrap_err().to_string();
        assert!(error.contains(hint), "{line}: {error}");
    }
}

#[test]
fn debug_output_holds_no_secret() {
    let config = read("k3s-agent -s https://a:1 -t hidden-token", &around()).unwrap();
    assert!(!format!("{config:?}").contains("hidden-token"));
}

#[test]
fn server_addresses_are_read_in_all_forms() {
    for (text, expected) in [
        ("https://a", Some(("a", 443, "a:443"))),
        ("https://a:6443///", Some(("a", 6443, "a:6443"))),
        ("https://[fd00::1]:6443", Some(("fd00::1", 6443, "[fd00::1]:6443"))),
        ("https://[fd00::1]", Some(("fd00::1", 443, "[fd00::1]:443"))),
        ("https://fd00::1", None),
        ("https://a:b", None),
        ("https://a:99999", None),
        ("https://a/path", None),
        ("https://u@a", None),
        ("https://", None),
        ("https://:1", None),
        ("a:6443", None),
    ] {
        let read = ServerUrl::parse(text).ok();
        let parts = read.as_ref().map(|url| (url.host(), url.port(), url.authority()));
        assert_eq!(
            parts,
            expected.map(|(host, port, full)| (host, port, full.to_owned())),
            "{text}"
        );
    }
}

#[test]
fn the_file_has_the_names_of_the_flags_and_the_command_line_goes_before_it() {
    let file = "server: https://file:6443\ntoken: \"from # file\"\nnode-label:\n  - a=b # one\n  - c=d\nd: /from-file\n\
                with-node-id: yes\nlb-server-port: 7000\nsnapshotter: native\ntls-san: x\nnode-ip: [10.0.0.1, \"10.0.0.2\"]\n";
    let config = with_files(
        &[("config.yaml", file)],
        false,
        "k3s-agent --node-label e=f --lb-server-port=8000",
    )
    .unwrap();
    assert_eq!(config.server.to_string(), "https://file:6443");
    assert_eq!(config.token.unwrap().expose(), "from # file");
    assert_eq!(
        config.labels,
        [("e".into(), "f".into())],
        "a list on the command line replaces the file's"
    );
    assert_eq!(config.data_dir, Path::new("/from-file"));
    assert_eq!(
        (config.with_node_id, config.balancer_port, config.node_ips.len()),
        (true, Some(8000), 2)
    );
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(
        config.warnings.iter().any(|told| told.contains("tls-san")),
        "{:?}",
        config.warnings
    );
    let config = with_files(
        &[("config.yaml", file)],
        false,
        "k3s-agent --with-node-id=false -s https://line",
    )
    .unwrap();
    assert!(
        !config.with_node_id,
        "a switch of the file is taken back on the command line"
    );
    assert_eq!((config.server.host(), config.labels.len()), ("line", 2));
}

#[test]
fn drop_ins_come_after_the_file_and_may_add_to_it() {
    let files = [
        (
            "config.yaml",
            "server: https://a:1\ntoken: pw\nnode-label: [a=1]\nnode-name: first\n",
        ),
        ("config.yaml.d/20.yml", "node-label+: c=3\n"),
        ("config.yaml.d/10.yaml", "node-label+: [b=2]\nnode-name: second\n"),
        ("config.yaml.d/30.txt", "not: [yaml"),
    ];
    let config = with_files(&files, true, "k3s-agent").unwrap();
    assert_eq!(
        config.labels.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(config.node_name, "second");
    let alone = [("config.yaml.d/1.yaml", "server: https://a:1\ntoken: pw")];
    assert!(
        with_files(&alone, true, "k3s-agent").is_ok(),
        "drop-ins need no main file"
    );
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_the_line_and_the_cure() {
    let line = "k3s-agent -s https://a:1 -t pw";
    assert!(with_files(&[], false, line).is_ok(), "the usual file need not be there");
    for (files, asked, hint) in [
        (&[][..], true, "config.yaml: No such file"),
        (
            &[("config.yaml", "node-label:\n  a: b")],
            false,
            "config.yaml: line 2: a value is a text or a list",
        ),
        (
            &[("config.yaml.d/1.yaml", "\n\ntoken")],
            false,
            "1.yaml: line 3: wanted \"flag: value\"",
        ),
        (&[("config.yaml", "debug: maybe")], false, "--debug"),
    ] {
        let error = with_files(files, asked, line).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
    let long = format!("# {}", "x".repeat(256 << 10));
    let error = with_files(&[("config.yaml", &long)], false, line)
        .unwrap_err()
        .to_string();
    assert!(error.contains("longer than"), "{error}");
}

#[test]
fn every_flag_of_k3s_works_or_is_named() {
    let line = "k3s agent -s https://a:1 -t pw --snapshotter native --selinux --kubelet-arg=a=b -l /log --docker=false -v 1 --debug=off";
    let config = read(line, &around()).unwrap();
    assert_eq!(config.warnings.len(), 5, "{:?}", config.warnings);
    assert!(config.debug, "what follows a switch is not taken for its value");
    for (flag, hint) in [
        ("--docker", "container runtime"),
        ("--rootless", "root"),
        ("--vpn-auth name=x", "--node-ip"),
        ("--cluster-secret x", "--token"),
    ] {
        let error = read(&format!("k3s-agent -s https://a:1 -t pw {flag}"), &around()).unwrap_err();
        assert!(error.to_string().contains(hint), "{flag}: {error}");
    }
    // Protocol 9.2, the agent's flags and those that it shares with the server.
    let named: Vec<&str> = flags::AGENT.names().collect();
    let command = Args::command();
    for flag in K3S.split_whitespace() {
        let ours = command.get_arguments().any(|arg| arg.get_long() == Some(flag));
        assert!(ours != named.contains(&flag), "--{flag} is unknown, or known twice");
    }
    for switch in flags::AGENT.switches {
        assert!(flags::AGENT.passed_over.contains(switch), "{switch}");
    }
}

const K3S: &str = "config debug vmodule log alsologtostderr token token-file server data-dir node-name with-node-id node-label \
    node-taint image-credential-provider-bin-dir image-credential-provider-config selinux lb-server-port disable-apiserver-lb \
    docker container-runtime-endpoint image-service-endpoint default-runtime disable-default-registry-endpoint \
    nonroot-devices pause-image snapshotter private-registry airgap-extra-registry node-ip node-external-ip \
    node-internal-dns node-external-dns resolv-conf flannel-iface flannel-conf flannel-cni-conf kubelet-arg kube-proxy-arg \
    protect-kernel-defaults rootless prefer-bundled-bin enable-pprof vpn-auth vpn-auth-file bind-address no-flannel \
    cluster-secret disable-selinux";

#[test]
fn help_teaches_the_way_in() {
    for (line, usage) in [
        ("k3s-agent --help", "Usage: k3s-agent"),
        ("k3s agent -h", "Usage: k3s agent"),
    ] {
        let Err(ConfigError::Usage(help)) = read(line, &around()) else {
            panic!("{line}")
        };
        let help = help.to_string();
        for word in [
            usage,
            "node-token",
            "config.yaml",
            "K3S_TOKEN",
            "K3S_URL",
            "agent/images",
            "--token-file",
            "Examples:",
        ] {
            assert!(help.contains(word), "{line} does not say {word}:\n{help}");
        }
    }
}
