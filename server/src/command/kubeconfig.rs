//! Reads a kubeconfig: which API, whom to trust, and as whom to come. Certificates, keys and tokens, as data or files.

use std::fs;
use std::path::{Path, PathBuf};

use agent::api::{Client, Endpoint};
use agent::config::ServerUrl;
use agent::join::trust::{self, Shown};
use agent::wire::object::{list, text};
use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A cluster, as an administrator.
pub struct Cluster {
    /// Its API.
    pub api: Client,
    /// The bundle of its authority, PEM, as served.
    pub ca: Vec<u8>,
}

/// Opens the current context of a file.
///
/// # Errors
/// What is wrong with the file, and what to do.
pub fn open(path: &Path) -> anyhow::Result<Cluster> {
    let content = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the kubeconfig {} (run this on a server as root, or give --kubeconfig FILE)",
            path.display()
        )
    })?;
    parse(&content, path.parent().unwrap_or(Path::new("/")))
        .with_context(|| format!("the kubeconfig {}", path.display()))
}

/// `folder`: what files are relative to.
fn parse(content: &str, folder: &Path) -> anyhow::Result<Cluster> {
    let config: Value = serde_saphyr::from_str(content).context("is no YAML")?;
    let context = named(&config, "contexts", "context", text(&config, &["current-context"]))?;
    let cluster = named(&config, "clusters", "cluster", text(context, &["cluster"]))?;
    let user = named(&config, "users", "user", text(context, &["user"]))?;
    let url = text(cluster, &["server"]);
    let server = ServerUrl::parse(url).with_context(|| format!("{url:?} is no server of ours"))?;
    let ca = pem(cluster, "certificate-authority", folder)?.context("has no certificate authority")?;
    let (chain, key) = (
        pem(user, "client-certificate", folder)?,
        pem(user, "client-key", folder)?,
    );
    let token = Some(text(user, &["token"])).filter(|token| !token.is_empty());
    let shown = chain
        .as_deref()
        .zip(key.as_deref())
        .map(|(chain, key)| Shown { chain, key });
    if shown.is_none() && token.is_none() {
        bail!("names no client certificate and no token");
    }
    let endpoint = Endpoint {
        host: server.host().to_owned(),
        port: server.port(),
        tls: Some(trust::bundle(&ca, shown, &Default::default())?),
    };
    Ok(Cluster {
        api: Client::with_authorization(endpoint, token.map(|token| format!("Bearer {token}"))),
        ca,
    })
}

fn named<'a>(config: &'a Value, all: &str, one: &str, name: &str) -> anyhow::Result<&'a Value> {
    let found = list(config, &[all]).iter().find(|entry| text(entry, &["name"]) == name);
    found
        .and_then(|entry| entry.get(one))
        .with_context(|| format!("has no {one} {name:?}"))
}

/// `KEY-data` in base64, or the file that `KEY` names.
fn pem(of: &Value, key: &str, folder: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let data = text(of, &[&format!("{key}-data")]);
    if !data.is_empty() {
        return STANDARD
            .decode(data)
            .map(Some)
            .with_context(|| format!("{key}-data is no base64"));
    }
    let file = text(of, &[key]);
    if file.is_empty() {
        return Ok(None);
    }
    let path: PathBuf = folder.join(file);
    fs::read(&path)
        .map(Some)
        .with_context(|| format!("{key}: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let whole = "apiVersion: v1\nclusters:\n- name: c\n  cluster: {server: 'https://x:1', certificate-authority-data: YQ==}\n\
            contexts:\n- name: d\n  context: {cluster: c, user: u}\ncurrent-context: d\nusers:\n- name: u\n  user: {}\n";
        for (old, new, hint) in [
            ("", "", "no client certificate and no token"),
            ("current-context: d", "current-context: e", "has no context \"e\""),
            ("cluster: c", "cluster: e", "has no cluster \"e\""),
            ("user: u", "user: e", "has no user \"e\""),
            ("https://x:1", "ftp://x", "is no server of ours"),
            ("certificate-authority-data: YQ==", "a: b", "no certificate authority"),
            ("YQ==", "'!'", "is no base64"),
            ("user: {}", "user: {client-certificate: gone.crt}", "/nowhere/gone.crt"),
        ] {
            let error = parse(&whole.replacen(old, new, 1), Path::new("/nowhere"))
                .err()
                .unwrap();
            assert!(format!("{error:#}").contains(hint), "{hint}: {error:#}");
        }
    }
}
