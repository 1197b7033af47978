//! What a person is told on a start, and that it is true.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::rig::{Admin, Folder, Program};

#[tokio::test(flavor = "multi_thread")]
async fn a_start_says_where_things_are_and_they_are_there() {
    let folder = Folder::new("greeting");
    let program = Program::start(&folder, &["--https-listen-port", "0"]);
    let greeting = program.greeting(&folder);
    let (_, port) = greeting.split_once(" at https://127.0.0.1:").expect(&greeting);
    let (port, _) = port.split_once('\n').unwrap();
    let (kubeconfig, token) = (folder.path("k3s.yaml"), folder.path("data/server/node-token"));
    let url = format!("https://127.0.0.1:{port}");
    for said in [
        format!("starts a server; its state is in {}\n", folder.path("data")),
        format!(" at {url}\n"),
        format!("  kubeconfig  export KUBECONFIG={kubeconfig}    then: kubectl get nodes\n"),
        "  node        none on this machine (--disable-agent)".to_owned(),
        format!("  token       {token}\n"),
        // Not a terminal: the token itself is not printed.
        format!(
            "  join        k3s-agent --server {url} --token <the text of {token}>    (as root, on another machine)\n"
        ),
    ] {
        assert!(greeting.contains(&said), "{said:?} is missing:\n{greeting}");
    }
    let mode = std::fs::metadata(&kubeconfig).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "it holds the administrator's key");
    let token = std::fs::read_to_string(&token).unwrap();
    assert!(
        token.starts_with("K10") && token.contains("::server:"),
        "no token for an agent"
    );
    assert!(!greeting.contains(token.trim()));
    let admin = Admin::of(kubeconfig.as_ref());
    assert_eq!(admin.address, format!("127.0.0.1:{port}"));
    assert_eq!(admin.get("/version").await["major"], "1");
    program.stop();
}

#[test]
fn without_root_one_sentence_says_what_to_do() {
    // Nobody may not read every folder that this test is built in.
    let folder = Folder::new("nobody");
    std::fs::set_permissions(&folder.0, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.0.join("k3s");
    if std::fs::hard_link(env!("CARGO_BIN_EXE_k3s"), &program).is_err() {
        std::fs::copy(env!("CARGO_BIN_EXE_k3s"), &program).unwrap();
    }
    let mut command = Command::new(&program);
    command.args(["server", "--config", &folder.path("config.yaml")]);
    command.env_clear().current_dir("/").uid(65534).gid(65534);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(
        said,
        "k3s: running pods needs root (mounts, network, cgroups): run \"sudo k3s server\", or a server without a node of \
         its own, which needs no root: k3s server --disable-agent --data-dir DIR\n"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
}
