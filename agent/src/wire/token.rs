//! Tokens: what a machine proves itself with to a cluster, and the secure form that pins the cluster's authority.
//!
//! One grammar for both programs: what a server writes, an agent reads. Source: K3s v1.36,
//! `pkg/clientaccess/token.go` `parseToken`; our protocol notes, section 1.1. Clusters have these texts in files and
//! scripts: widen the grammar, never narrow it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What a secure token begins with.
const PREFIX: &str = "K10";
/// Hexadecimal digits of a pinned authority.
const HASH_DIGITS: usize = 64;

/// A text that no log line and no debug output shows.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}

/// A token as an operator wrote it, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// SHA-256 of the cluster's CA, 64 hex digits; `None` trusts whoever answers first.
    pub ca_hash: Option<String>,
    /// What it proves.
    pub credential: Credential,
}

/// What a token proves itself with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credential {
    /// Basic authentication. An agent always sends the user `node`, a server `server`.
    Password {
        /// May be empty.
        user: String,
        /// Never empty.
        password: Secret,
    },
    /// kubeadm's `id.secret`, sent as a bearer token.
    Bootstrap(Bootstrap),
}

/// A bootstrap token, `abcdef.0123456789abcdef`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bootstrap {
    /// Six characters; not secret.
    pub id: String,
    /// Sixteen characters.
    pub secret: Secret,
}

/// Why a text is no token, in K3s' words; never holds the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("token must not be empty")]
    Empty,
    /// It begins with `K10` and does not go on as such.
    #[error("invalid token format")]
    Format,
    /// Between `K10` and `::` are other than 64 digits.
    #[error("invalid token CA hash length")]
    HashLength,
}

impl Token {
    /// Reads a token: bare password, `id.secret`, or either behind `K10<hash>::`.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let Some(secure) = text.strip_prefix(PREFIX) else {
            let credential = match Bootstrap::parse(text) {
                Some(token) => Credential::Bootstrap(token),
                None => Credential::Password {
                    user: String::new(),
                    password: Secret::new(text),
                },
            };
            return Ok(Self {
                ca_hash: None,
                credential,
            });
        };
        let (hash, rest) = secure.split_once("::").ok_or(TokenError::Format)?;
        let ca_hash = match hash.len() {
            0 => None,
            HASH_DIGITS => Some(hash.to_owned()),
            _ => return Err(TokenError::HashLength),
        };
        let credential = match (Bootstrap::parse(rest), rest.split_once(':')) {
            (Some(token), _) => Credential::Bootstrap(token),
            (None, Some((user, password))) if !password.is_empty() => Credential::Password {
                user: user.to_owned(),
                password: Secret::new(password),
            },
            (None, _) => return Err(TokenError::Format),
        };
        Ok(Self { ca_hash, credential })
    }

    /// The value of an `Authorization` header; `user` replaces the one in the token.
    pub fn authorization(&self, user: &str) -> String {
        match &self.credential {
            Credential::Bootstrap(token) => format!("Bearer {}", token.text().expose()),
            Credential::Password { password, .. } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose())))
            }
        }
    }
}

impl Bootstrap {
    /// Reads kubeadm's `[a-z0-9]{6}.[a-z0-9]{16}`; `None` when it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |part: &str, length| {
            part.len() == length
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let (id, secret) = text.split_once('.')?;
        (plain(id, 6) && plain(secret, 16)).then(|| Self {
            id: id.to_owned(),
            secret: Secret::new(secret),
        })
    }

    /// `id.secret`.
    pub fn text(&self) -> Secret {
        Secret::new(format!("{}.{}", self.id, self.secret.expose()))
    }

    /// The form that pins a CA: `K10<hash>::<id>.<secret>`.
    pub fn secure(&self, ca_hash: &str) -> Secret {
        Secret::new(format!("{PREFIX}{ca_hash}::{}", self.text().expose()))
    }
}

/// A password in the form that pins a CA: `K10<hash>::<user>:<password>`.
pub fn secure(ca_hash: &str, user: &str, password: &Secret) -> Secret {
    Secret::new(format!("{PREFIX}{ca_hash}::{user}:{}", password.expose()))
}

/// The bare password of a token given to a server; one that names a hash is stripped of it.
///
/// # Errors
/// When it is no token, or a bootstrap token, which no server can have for its secret.
pub fn server_secret(text: &str) -> Result<Secret, TokenError> {
    match Token::parse(text.trim())?.credential {
        Credential::Password { password, .. } => Ok(password),
        Credential::Bootstrap(_) => Err(TokenError::Format),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn every_form_of_the_grammar_is_read_as_k3s_reads_it() {
        let token = |hash: Option<&str>, credential| {
            Ok(Token {
                ca_hash: hash.map(str::to_owned),
                credential,
            })
        };
        let password = |hash, user: &str, password: &str| {
            let (user, password) = (user.to_owned(), Secret::new(password));
            token(hash, Credential::Password { user, password })
        };
        let bootstrap = |hash| {
            let (id, secret) = ("abcdef".to_owned(), Secret::new("0123456789abcdef"));
            token(hash, Credential::Bootstrap(Bootstrap { id, secret }))
        };
        for (text, expected) in [
            ("", Err(TokenError::Empty)),
            ("secret", password(None, "", "secret")),
            ("with:colon", password(None, "", "with:colon")),
            ("abcdef.0123456789abcdef", bootstrap(None)),
            ("Abcdef.0123456789abcdef", password(None, "", "Abcdef.0123456789abcdef")),
            (&format!("K10{HASH}::server:pw"), password(Some(HASH), "server", "pw")),
            (
                &format!("K10{HASH}::node:p:w::x"),
                password(Some(HASH), "node", "p:w::x"),
            ),
            (&format!("K10{HASH}:::pw"), password(Some(HASH), "", "pw")),
            (&format!("K10{HASH}::abcdef.0123456789abcdef"), bootstrap(Some(HASH))),
            ("K10:::pw", password(None, "", "pw")),
            ("K10::abcdef.0123456789abcdef", bootstrap(None)),
            ("K10secret", Err(TokenError::Format)),
            ("K10abc::server:pw", Err(TokenError::HashLength)),
            (&format!("K10{HASH}::server:"), Err(TokenError::Format)),
            (&format!("K10{HASH}::pw"), Err(TokenError::Format)),
        ] {
            assert_eq!(Token::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn an_agent_is_always_the_user_node() {
        let token = Token::parse(&format!("K10{HASH}::server:pw")).unwrap();
        assert_eq!(token.authorization("node"), "Basic bm9kZTpwdw==");
        let token = Token::parse("abcdef.0123456789abcdef").unwrap();
        assert_eq!(token.authorization("node"), "Bearer abcdef.0123456789abcdef");
    }

    #[test]
    fn a_server_strips_what_surrounds_its_secret() {
        assert_eq!(server_secret("  plain\n"), Ok(Secret::new("plain")));
        assert_eq!(server_secret(&format!("K10{HASH}::server:pw\n")), Ok(Secret::new("pw")));
        assert_eq!(server_secret("abcdef.0123456789abcdef"), Err(TokenError::Format));
        assert_eq!(server_secret("K10mistake"), Err(TokenError::Format));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        for text in ["very-secret", "abcdef.0very0secret0000"] {
            let token = Token::parse(text).unwrap();
            assert!(!format!("{token:?}").contains("secret\""), "{token:?}");
            assert!(!format!("{token:?}").contains("very"), "{token:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(user in "[a-z]{0,8}", password in "[ -~]{1,40}") {
            let text = secure(HASH, &user, &Secret::new(password.clone()));
            let expected = Token {
                ca_hash: Some(HASH.to_owned()),
                credential: Credential::Password { user, password: Secret::new(password) },
            };
            prop_assert_eq!(Token::parse(text.expose()), Ok(expected));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Token::parse(&text);
        }
    }
}
