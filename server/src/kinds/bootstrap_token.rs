//! Bootstrap tokens: `abcdef.0123456789abcdef`, kept as Secrets `kube-system/bootstrap-token-<id>` with an end.
//!
//! Who joins with one is `auth`'s to say, what is over is removed by a controller, `k3s token` makes and lists them; what
//! is in the Secret is said here only. Source: Kubernetes v1.36, `cluster-bootstrap/token/api/types.go`.

use agent::wire::object::{set, text};
use agent::wire::time;
use agent::wire::token::{Bootstrap, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Where they lie.
pub const NAMESPACE: &str = "kube-system";
/// What a Secret's name begins with.
pub const PREFIX: &str = "bootstrap-token-";
/// Type of the Secrets.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";
/// The usage that lets a machine log in with the token.
pub const AUTHENTICATION: &str = "authentication";
/// What every holder is in.
pub const GROUP: &str = "system:bootstrappers";
/// All usages there are.
const USAGES: [&str; 2] = ["signing", AUTHENTICATION];
/// What a name of a group may be beyond its first part.
const GROUP_LENGTH: usize = 256;

/// A bootstrap token, as its Secret has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BootstrapToken {
    /// Id and secret.
    pub token: Bootstrap,
    /// For people.
    pub description: String,
    /// Its end; `None`: it has none.
    pub expires: Option<Timestamp>,
    /// What it is for.
    pub usages: Vec<String>,
    /// Groups of who holds it, beside [`GROUP`].
    pub groups: Vec<String>,
}

impl BootstrapToken {
    /// Reads a Secret; `None` when it is none of ours, going, or damaged: an end that cannot be read is one.
    pub fn read(secret: &Value) -> Option<Self> {
        let data = |key: &str| {
            let bytes = STANDARD.decode(text(secret, &["data", key])).unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_default()
        };
        let token = Bootstrap::parse(&format!("{}.{}", data("token-id"), data("token-secret")))?;
        let ours = text(secret, &["type"]) == TYPE
            && text(secret, &["metadata", "deletionTimestamp"]).is_empty()
            && text(secret, &["metadata", "name"]) == format!("{PREFIX}{}", token.id);
        let expires = match data("expiration") {
            none if none.is_empty() => None,
            some => Some(time::parse(&some).unwrap_or(Timestamp::UNIX_EPOCH)),
        };
        let usages = USAGES
            .iter()
            .filter(|usage| data(&format!("usage-bootstrap-{usage}")) == "true");
        let groups = data("auth-extra-groups");
        let groups = groups.split(',').map(str::trim).filter(|group| is_group(group));
        ours.then(|| Self {
            token,
            description: data("description"),
            expires,
            usages: usages.map(|&usage| usage.to_owned()).collect(),
            groups: groups.map(str::to_owned).collect(),
        })
    }

    /// The Secret.
    pub fn secret(&self) -> Value {
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE,
            "metadata": { "name": format!("{PREFIX}{}", self.token.id), "namespace": NAMESPACE },
        });
        let mut put = |key: &str, value: &str| set(&mut secret, &["data", key], STANDARD.encode(value));
        put("token-id", &self.token.id);
        put("token-secret", self.token.secret.expose());
        if !self.description.is_empty() {
            put("description", &self.description);
        }
        if let Some(expires) = self.expires {
            put("expiration", &time::seconds(expires));
        }
        for usage in &self.usages {
            put(&format!("usage-bootstrap-{usage}"), "true");
        }
        if !self.groups.is_empty() {
            put("auth-extra-groups", &self.groups.join(","));
        }
        secret
    }

    /// Whether its end has come.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    /// Whether a machine may log in with it.
    pub fn authenticates(&self) -> bool {
        self.usages.iter().any(|usage| usage == AUTHENTICATION)
    }
}

/// Whether a holder may be put into this group: `system:bootstrappers:…` in lower case.
///
/// Source: Kubernetes v1.36, `cluster-bootstrap/token/api` `BootstrapGroupPattern`.
pub fn is_group(name: &str) -> bool {
    let rest = name.strip_prefix("system:bootstrappers:").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    rest.len() <= GROUP_LENGTH
        && rest.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b':')
        && rest.bytes().last().is_some_and(plain)
}

/// Whether there is such a usage.
pub fn is_usage(name: &str) -> bool {
    USAGES.contains(&name)
}

/// A token nobody can guess, from random bytes.
pub fn from_random(bytes: [u8; 22]) -> Bootstrap {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // 256 is no multiple of 36: a few letters come a little more often, which costs less than one of 113 bits.
    let letter = |byte: &u8| {
        LETTERS
            .get(usize::from(*byte) % LETTERS.len())
            .map(|letter| char::from(*letter))
    };
    let text: String = bytes.iter().filter_map(letter).collect();
    let (id, secret) = text.split_at(6);
    Bootstrap {
        id: id.to_owned(),
        secret: Secret::new(secret),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> BootstrapToken {
        BootstrapToken {
            token: Bootstrap::parse("abcdef.0123456789abcdef").unwrap(),
            description: "roof".to_owned(),
            expires: Some("2026-11-28T00:00:00Z".parse().unwrap()),
            usages: vec!["signing".to_owned(), "authentication".to_owned()],
            groups: vec!["system:bootstrappers:k3s:default-node-token".to_owned()],
        }
    }

    #[test]
    fn a_secret_of_kubeadm_or_k3s_is_read_and_ours_is_the_same() {
        let data = |pairs: &[(&str, &str)]| -> Value {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), Value::from(STANDARD.encode(value))))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": { "name": "bootstrap-token-abcdef", "namespace": "kube-system" },
            "data": data(&[("token-id", "abcdef"), ("token-secret", "0123456789abcdef"), ("description", "roof"),
                ("expiration", "2026-11-28T00:00:00Z"), ("usage-bootstrap-signing", "true"),
                ("usage-bootstrap-authentication", "true"),
                ("auth-extra-groups", "system:bootstrappers:k3s:default-node-token")]),
        });
        assert_eq!(BootstrapToken::read(&secret), Some(token()));
        assert_eq!(token().secret(), secret);
    }

    #[test]
    fn what_is_no_token_is_none() {
        for (path, value) in [
            (&["type"][..], json!("Opaque")),
            (&["metadata", "name"], json!("bootstrap-token-other0")),
            (&["metadata", "deletionTimestamp"], json!("2026-11-28T00:00:00Z")),
            (&["data", "token-secret"], json!(STANDARD.encode("short"))),
        ] {
            let mut secret = token().secret();
            set(&mut secret, path, value);
            assert_eq!(BootstrapToken::read(&secret), None, "{path:?}");
        }
        let mut secret = token().secret();
        set(&mut secret, &["data", "expiration"], STANDARD.encode("tomorrow"));
        let odd = BootstrapToken::read(&secret).unwrap();
        assert!(
            odd.is_over("2026-01-01T00:00:00Z".parse().unwrap()),
            "an end that cannot be read"
        );
    }

    #[test]
    fn only_groups_of_bootstrappers_can_be_given() {
        for (name, good) in [
            ("system:bootstrappers:k3s:default-node-token", true),
            ("system:bootstrappers:a", true),
            ("system:bootstrappers:", false),
            ("system:bootstrappers:a-", false),
            ("system:bootstrappers:A", false),
            ("system:masters", false),
            ("", false),
        ] {
            assert_eq!(is_group(name), good, "{name}");
        }
    }

    #[test]
    fn random_bytes_make_a_token_of_the_right_form() {
        for byte in [0, 35, 36, 255] {
            let made = from_random([byte; 22]);
            assert_eq!(Bootstrap::parse(made.text().expose()), Some(made));
        }
    }
}
