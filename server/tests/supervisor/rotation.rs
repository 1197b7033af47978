//! `k3s token rotate` against a running server: what changes at once, what goes on, and what is refused.

use std::os::unix::fs::PermissionsExt as _;

use hyper::Method;
use rcgen::KeyPair;
use server::run::Server;

use crate::rig::*;

impl Cluster {
    /// `k3s token rotate` on this server's machine.
    async fn rotate(&self, more: &str) -> Result<String, String> {
        let (port, dir) = (self.server().address.port(), self.dir.display());
        self.k3s(&format!(
            "token rotate --server https://127.0.0.1:{port} --data-dir {dir} {more}"
        ))
        .await
    }

    async fn put_token(&self, user: &str, password: &str, body: &str) -> Reply {
        let authorization = basic(user, password);
        let request = request(Method::PUT, "/v1-k3s/token", Some(&authorization), &[], body.as_bytes());
        self.send(request, None).await
    }

    async fn joins_with(&self, node: &str, password: &str) -> u16 {
        let key = KeyPair::generate().unwrap();
        let authorization = basic("node", password);
        let request = self.certificate_request(node, PASSWORD, Some(&authorization), &key);
        self.send(request, None).await.code
    }

    async fn restart(&mut self, token: &str) -> Result<(), String> {
        if let Some(server) = self.server.take() {
            server.stop().await.unwrap();
        }
        let mut config = Self::config(&self.dir);
        config.token = Some(agent::config::Secret::new(token)).filter(|_| !token.is_empty());
        let started = Server::start(&config).await;
        self.server = Some(started.map_err(|error| format!("{error:#}"))?);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_joins_at_once_and_the_old_one_joins_nobody_but_keeps_who_has_joined() {
    let mut cluster = Cluster::start("rotate").await;
    let old = cluster.file("node-token").trim().to_owned();
    agent_joins(&cluster, "pi", "machine", &old).await.unwrap();
    cluster.register("pi").await;

    let new = cluster.dir.join("new-token");
    std::fs::write(&new, "fresh\n").unwrap();
    let said = cluster
        .rotate(&format!("--new-token-file {}", new.display()))
        .await
        .unwrap();
    assert!(
        said.contains("keep the old token") && said.contains("restart") && !said.contains("fresh"),
        "{said}"
    );
    let (pinned, _) = old.split_once("::").unwrap();
    for name in ["token", "node-token", "agent-token"] {
        assert_eq!(cluster.file(name), format!("{pinned}::server:fresh\n"), "{name}");
    }
    for name in ["token", "cred/passwd"] {
        let path = cluster.dir.join("server").join(name);
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        assert!(!cluster.file(name).contains("secret"), "{name}");
    }
    assert!(!cluster.dir.join("server/token.next").exists());

    assert_eq!(cluster.joins_with("box", "secret").await, 401);
    assert_eq!(cluster.joins_with("box", "fresh").await, 200);
    assert_eq!(cluster.put_token("server", "secret", "{}").await.code, 401);
    agent_joins(&cluster, "pi", "machine", &old)
        .await
        .unwrap_or_else(|error| panic!("a node that joined comes again with its certificate: {error}"));

    let error = cluster.restart("secret").await.unwrap_err();
    assert!(
        error.contains("k3s token rotate") && error.contains("--token-file"),
        "{error}"
    );
    for token in ["fresh", ""] {
        cluster.restart(token).await.unwrap();
        assert_eq!(cluster.joins_with("box", "fresh").await, 200);
        assert_eq!(cluster.joins_with("box", "secret").await, 401);
        agent_joins(&cluster, "pi", "machine", &old).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_takes_what_k3s_takes_from_whom_it_may() {
    let cluster = Cluster::start("rotate-route").await;
    let node = cluster.put_token("node", "secret", r#"{"newToken":"x"}"#).await;
    assert_eq!(node.code, 403, "an agent's credential: {node:?}");
    for body in ["", "{", r#"{"newToken":7}"#, r#"{"newToken":"fre"#] {
        let reply = cluster.put_token("server", "secret", body).await;
        assert_eq!(reply.code, 400, "{body}");
        assert!(!reply.message().contains("fre"), "{reply:?}");
    }
    for word in ["K10mistake", "abcdef.0123456789abcdef"] {
        let reply = cluster
            .put_token("server", "secret", &format!(r#"{{"newToken":"{word}"}}"#))
            .await;
        assert_eq!(reply.code, 400, "{word}");
        assert!(!reply.message().contains(word) || word.contains('.'), "{reply:?}");
    }
    let authorization = basic("server", "secret");
    let get = cluster.get("/v1-k3s/token", Some(&authorization)).await;
    assert_eq!(get.code, 405);
    assert_eq!(cluster.joins_with("pi", "secret").await, 200, "nothing has changed");

    for body in [r#"{"newToken":""}"#, "{}"] {
        let before = cluster.file("token");
        let (_, password) = before.trim().rsplit_once(':').unwrap();
        let reply = cluster.put_token("server", password, body).await;
        assert_eq!((reply.code, reply.body.as_str()), (200, ""), "{body}");
        let after = cluster.file("token");
        let (_, random) = after.trim().rsplit_once(':').unwrap();
        assert!(
            random != password && random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{after}"
        );
        assert_eq!(cluster.joins_with("pi", random).await, 200);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_what_is_wrong_and_changes_nothing_then() {
    let cluster = Cluster::start("rotate-command").await;
    let empty = cluster.dir.join("empty");
    std::fs::write(&empty, " \n").unwrap();
    let elsewhere = format!("K10{}::server:secret", "0".repeat(64));
    let empty = format!("--new-token-file {}", empty.display());
    for (more, hint) in [
        ("--token wrong", "refused (401)"),
        ("--token abcdef.0123456789abcdef", "a bootstrap token rotates nothing"),
        (&format!("--token {elsewhere}"), "token CA hash does not match"),
        ("--new-token K10mistake", "cannot be the secret of a cluster"),
        (&empty, "is empty"),
        (
            "--token-file /nowhere/token",
            "cannot read the present token from /nowhere/token",
        ),
    ] {
        let error = cluster.rotate(more).await.unwrap_err();
        assert!(error.contains(hint), "{more}: {error}");
        assert!(!error.contains("mistake"), "a secret is not repeated: {error}");
    }
    assert_eq!(cluster.joins_with("pi", "secret").await, 200);
    cluster.stop().await;
}
