//! Kubeconfig files, in K3s' form: one cluster, one user, one context, of one name, everything embedded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::join::pki::Leaf;

/// The text of a kubeconfig for whoever holds this certificate.
///
/// `server`: `https://127.0.0.1:6443`; `ca`: PEM bundle of the servers' authority; `name`: of cluster, user and context.
pub fn text(server: &str, ca: &str, leaf: &Leaf, name: &str) -> String {
    // The usual name stands bare, as in K3s' files: scripts replace it by its text.
    let name = match name {
        "default" => name.to_owned(),
        other => Value::from(other).to_string(),
    };
    let [ca, chain, key] = [ca, &leaf.chain, leaf.key.pem()].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {ca}
    server: {server}
  name: {name}
contexts:
- context:
    cluster: {name}
    user: {name}
  name: {name}
current-context: {name}
kind: Config
preferences: {{}}
users:
- name: {name}
  user:
    client-certificate-data: {chain}
    client-key-data: {key}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::key::PrivateKey;

    #[test]
    fn it_is_the_kubeconfig_of_k3s() {
        let leaf = Leaf {
            chain: "chain".to_owned(),
            key: PrivateKey::generate().unwrap(),
        };
        let read =
            |name| -> Value { serde_saphyr::from_str(&text("https://127.0.0.1:6443", "ca", &leaf, name)).unwrap() };
        for name in ["default", "prod: west", "on"] {
            let read = read(name);
            let context = &read["contexts"][0];
            for named in [
                &read["current-context"],
                &read["clusters"][0]["name"],
                &read["users"][0]["name"],
                &context["name"],
                &context["context"]["cluster"],
                &context["context"]["user"],
            ] {
                assert_eq!(named, name);
            }
        }
        let read = read("default");
        assert_eq!(read["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(read["clusters"][0]["cluster"]["certificate-authority-data"], "Y2E=");
        let key = read["users"][0]["user"]["client-key-data"].as_str().unwrap();
        assert_eq!(STANDARD.decode(key).unwrap(), leaf.key.pem().as_bytes());
    }
}
