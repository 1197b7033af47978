//! Kubeconfig files, in K3s' form: one cluster, one user, one context, all named `default`, everything embedded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::join::pki::Leaf;

/// The text of a kubeconfig for whoever holds this certificate.
///
/// `server`: `https://127.0.0.1:6443`; `ca`: PEM bundle of the servers' authority.
pub fn text(server: &str, ca: &str, leaf: &Leaf) -> String {
    let [ca, chain, key] = [ca, &leaf.chain, leaf.key.pem()].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {ca}
    server: {server}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {{}}
users:
- name: default
  user:
    client-certificate-data: {chain}
    client-key-data: {key}
"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::join::key::PrivateKey;

    #[test]
    fn it_is_the_kubeconfig_of_k3s() {
        let leaf = Leaf {
            chain: "chain".to_owned(),
            key: PrivateKey::generate().unwrap(),
        };
        let text = text("https://127.0.0.1:6443", "ca", &leaf);
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read["current-context"], "default");
        assert_eq!(read["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(read["clusters"][0]["cluster"]["certificate-authority-data"], "Y2E=");
        let key = read["users"][0]["user"]["client-key-data"].as_str().unwrap();
        assert_eq!(STANDARD.decode(key).unwrap(), leaf.key.pem().as_bytes());
    }
}
