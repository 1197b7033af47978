//! What lies on disks and in the API (1.3, 3.1, 3.2): tokens, who a node is, and what the cluster knows it by.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agent::join::Identity;
use agent::wire::join::ca_hash;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::server::{AGENT_TOKEN, PASSWORD, Server, TOKEN};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn is_hex(text: &str, digits: usize) -> bool {
    let of_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == digits && text.bytes().all(of_hex)
}

/// The server's tokens: K3s, its scripts and people look for them there.
pub fn tokens_are_where_k3s_has_them(server: &Server) {
    let hash = ca_hash(server.file("tls/server-ca.crt").as_bytes());
    for (name, text) in [
        ("token", format!("K10{hash}::server:{TOKEN}\n")),
        ("agent-token", format!("K10{hash}::node:{AGENT_TOKEN}\n")),
        (
            "cred/passwd",
            format!("{AGENT_TOKEN},node,node,k3s:agent\n{TOKEN},server,server,k3s:server\n"),
        ),
    ] {
        assert_eq!((server.file(name), mode(&server.path(name))), (text, 0o600), "{name}");
    }
    let link = fs::read_link(server.path("node-token")).unwrap();
    assert_eq!(link.file_name().unwrap(), "token");
    assert_eq!(server.file("node-token"), server.file("token"));
    assert!(is_hex(server.file("cred/ipsec.psk").trim(), 96));
}

/// A node's record over the API, as K3s reads it. Differs: N = 2^8, which every reader takes from the text.
pub fn a_nodes_record_is_k3s_own(server: &Server) {
    server.joined("record");
    let head = "GET /api/v1/namespaces/kube-system/secrets/record.node-password.k3s HTTP/1.1\nHost: k3s";
    let secret = server.open(Some(&server.own("client-admin"))).ask(head, b"").json();
    assert_eq!(secret["type"], json!("k3s.cattle.io/node-password"), "{secret}");
    assert_eq!(secret["immutable"], json!(true), "{secret}");
    let data = secret["data"].as_object().unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["hash"]);
    let hash = STANDARD.decode(data["hash"].as_str().unwrap()).unwrap();
    let hash = String::from_utf8(hash).unwrap();
    let parts: Vec<&str> = hash.split(':').collect();
    let [version, salt, cost, block, parallel, key] = parts[..] else {
        panic!("{hash}")
    };
    assert_eq!((version, cost, block, parallel), ("$1", "8", "8", "1"), "{hash}");
    assert!(is_hex(salt, 16), "{hash}");
    // 64 bytes without padding.
    assert!(key.len() == 86 && STANDARD.decode(format!("{key}==")).unwrap().len() == 64);
    assert!(!secret.to_string().contains(PASSWORD));
}

/// Made once, and read again; the id only where it is wanted.
pub fn an_agents_identity_is_where_k3s_has_it() {
    let folder = std::env::temp_dir().join(format!("wire-identity-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let at = folder.join("node");
    fs::create_dir_all(&folder).unwrap();
    let plain = Identity::open(&at, "pi", false).unwrap();
    assert_eq!((plain.node_name.as_str(), mode(&at)), ("pi", 0o755));
    assert!(!at.join("id").exists());
    // A machine that has a password and wants an id from now on.
    let with_id = Identity::open(&at, "pi", true).unwrap();
    for (name, digits, access, held) in [
        ("password", 32, 0o600, plain.password.expose()),
        ("id", 8, 0o644, with_id.node_name.strip_prefix("pi-").unwrap()),
    ] {
        let text = fs::read_to_string(at.join(name)).unwrap();
        assert!(is_hex(held, digits), "{name}");
        assert_eq!((text, mode(&at.join(name))), (format!("{held}\n"), access), "{name}");
    }
    let again = Identity::open(&at, "pi", true).unwrap();
    assert_eq!(again.node_name, with_id.node_name);
    assert_eq!(again.password.expose(), plain.password.expose());
    fs::remove_dir_all(&folder).unwrap();
}
