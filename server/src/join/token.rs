//! Tokens: their grammar, and the secure form that pins the cluster's authority.
//!
//! Pure. Source: K3s v1.36 `pkg/clientaccess/token.go`; `docs/` of K3s on `k3s token`.

pub use agent::config::Secret;

/// What a token proves oneself with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credential {
    /// HTTP Basic. The user may be empty.
    Password {
        /// `server`, `node` or empty.
        user: String,
        /// The cluster's secret.
        password: Secret,
    },
    /// Bearer: kubeadm's `id.secret`.
    Bootstrap {
        /// Six characters.
        id: String,
        /// The whole `id.secret`.
        text: Secret,
    },
}

/// A token, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// SHA-256 of the cluster's authority in hexadecimal, if the token pins it.
    pub hash: Option<String>,
    /// The rest.
    pub credential: Credential,
}

/// Why a text is no token; the texts are K3s'.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("token must not be empty")]
    Empty,
    /// No `::`, or no user and password after it.
    #[error("invalid token format")]
    Format,
    /// The hash is neither empty nor 64 characters.
    #[error("invalid token CA hash length")]
    HashLength,
}

const PREFIX: &str = "K10";

impl Token {
    /// Reads a token of any form (1.1).
    ///
    /// # Errors
    /// [`TokenError`], in K3s' words.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let credential = bootstrap(text).unwrap_or_else(|| Credential::Password {
                user: String::new(),
                password: Secret::new(text),
            });
            return Ok(Self { hash: None, credential });
        };
        let (hash, rest) = rest.split_once("::").ok_or(TokenError::Format)?;
        let hash = match hash.len() {
            0 => None,
            64 => Some(hash.to_owned()),
            _ => return Err(TokenError::HashLength),
        };
        if let Some(credential) = bootstrap(rest) {
            return Ok(Self { hash, credential });
        }
        match rest.split_once(':') {
            Some((user, password)) if !password.is_empty() => {
                let (user, password) = (user.to_owned(), Secret::new(password));
                Ok(Self {
                    hash,
                    credential: Credential::Password { user, password },
                })
            }
            _ => Err(TokenError::Format),
        }
    }
}

/// The secure form: `K10<hash>::<user>:<password>`.
pub fn secure(hash: &str, user: &str, password: &Secret) -> String {
    format!("{PREFIX}{hash}::{user}:{}", password.expose())
}

/// The bare password of a token given to a server; one that names a hash is stripped of it.
///
/// # Errors
/// When it is no token, or a bootstrap token, which no server can have for its secret.
pub fn server_secret(text: &str) -> Result<Secret, TokenError> {
    match Token::parse(text.trim())?.credential {
        Credential::Password { password, .. } => Ok(password),
        Credential::Bootstrap { .. } => Err(TokenError::Format),
    }
}

/// kubeadm's `[a-z0-9]{6}.[a-z0-9]{16}`.
fn bootstrap(text: &str) -> Option<Credential> {
    let (id, secret) = text.split_once('.')?;
    let plain = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let shaped = id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret);
    shaped.then(|| Credential::Bootstrap {
        id: id.to_owned(),
        text: Secret::new(text),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn every_form_of_the_grammar_is_read() {
        let password = |hash: Option<&str>, user: &str, password: &str| {
            let (user, password) = (user.to_owned(), Secret::new(password));
            Ok(Token {
                hash: hash.map(str::to_owned),
                credential: Credential::Password { user, password },
            })
        };
        let bootstrap = |hash: Option<&str>| {
            let credential = Credential::Bootstrap {
                id: "abcdef".into(),
                text: Secret::new("abcdef.0123456789abcdef"),
            };
            Ok(Token {
                hash: hash.map(str::to_owned),
                credential,
            })
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
            (&format!("K10{HASH}::abcdef.0123456789abcdef"), bootstrap(Some(HASH))),
            ("K10:::pw", password(None, "", "pw")),
            ("K10::abcdef.0123456789abcdef", bootstrap(None)),
            ("K10secret", Err(TokenError::Format)),
            ("K10abc::server:pw", Err(TokenError::HashLength)),
            (&format!("K10{HASH}::server:"), Err(TokenError::Format)),
            (&format!("K10{HASH}::server"), Err(TokenError::Format)),
        ] {
            assert_eq!(Token::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_server_strips_what_surrounds_its_secret() {
        assert_eq!(server_secret("  plain\n"), Ok(Secret::new("plain")));
        assert_eq!(server_secret(&format!("K10{HASH}::server:pw\n")), Ok(Secret::new("pw")));
        assert_eq!(server_secret("abcdef.0123456789abcdef"), Err(TokenError::Format));
        assert_eq!(server_secret("K10mistake"), Err(TokenError::Format));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let token = Token::parse("very-secret").unwrap();
        assert!(!format!("{token:?}").contains("very-secret"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(user in "[a-z]{0,8}", password in "[ -~]{1,40}") {
            prop_assume!(bootstrap(&format!("{user}:{password}")).is_none());
            let text = secure(HASH, &user, &Secret::new(password.clone()));
            let expected = Token { hash: Some(HASH.to_owned()), credential: Credential::Password { user, password: Secret::new(password) } };
            prop_assert_eq!(Token::parse(&text), Ok(expected));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Token::parse(&text);
        }
    }
}
