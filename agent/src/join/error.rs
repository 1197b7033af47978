//! Why a machine is not a node (yet). Each text names the cause and the cure: it is the one line an operator sees.

use std::io;
use std::path::PathBuf;

use super::clock::Window;
use super::key::KeyError;
use super::trust::TrustError;
use crate::api::{TransportError, is_refusal};
use crate::wire::status::Status;
use crate::wire::token::TokenError;

/// Why a join failed. All of it is tried again: what is wrong may be put right at the other end.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answers.
    #[error("no server answers at {server} ({reason}): check --server, the network, and that the server runs")]
    Unreachable {
        /// As configured.
        server: String,
        /// Why.
        reason: String,
    },
    /// The CA is another cluster's.
    #[error(
        "token CA hash does not match the Cluster CA certificate hash: {expected} != {served}: the token is of another \
         cluster, the cluster was made anew, or somebody is in between; take the token from \
         /var/lib/rancher/k3s/server/node-token on the server"
    )]
    CaHash {
        /// In the token.
        expected: String,
        /// Of what came.
        served: String,
    },
    /// The token pins no CA, and the server's is not the one of an earlier join.
    #[error(
        "the server's CA is not the one this machine joined: {kept} != {served}: the cluster was made anew, or somebody is \
         in between; give the full token (K10 and the hash) from /var/lib/rancher/k3s/server/node-token on the server, or \
         remove {} to trust whoever answers", path.display()
    )]
    OtherCa {
        /// Hash of the one on disk.
        kept: String,
        /// Of what came.
        served: String,
        /// The file.
        path: PathBuf,
    },
    /// The token pins no CA, or there is none, and the CA of an earlier join is lost.
    #[error(
        "no server can be told from another: the token has no CA hash, and the CA of an earlier join in {} {}: give the full \
         token (K10 and the hash) from /var/lib/rancher/k3s/server/node-token on the server, or put the file back",
        path.display(), if *missing { "is missing" } else { "is damaged" }
    )]
    LostCa {
        /// The file.
        path: PathBuf,
        /// Or else damaged.
        missing: bool,
    },
    /// The server's certificate is not of its own CA, or for another name, or the clock is wrong.
    #[error(
        "CA cert validation failed at {server} ({reason}): look at the clock of this machine; give the server the name or address \
         in --server as its --tls-san; and check that this is a K3s server, and nothing in front of it that ends TLS"
    )]
    Untrusted {
        /// As configured.
        server: String,
        /// Why.
        reason: String,
    },
    /// 401, with the cure.
    #[error("the server does not accept the token: {0}")]
    Token(String),
    /// The certificate of an earlier join counts no longer, and there was nothing else to show.
    #[error(
        "the server does not accept the certificate of an earlier join ({0}), and there is no token: give --token, from \
         /var/lib/rancher/k3s/server/node-token on the server"
    )]
    Certificate(String),
    /// 400, or 403 because of the name: what this machine says of itself cannot be.
    #[error("the server does not take this node: {0}")]
    Node(String),
    /// 403 because of the password, with the cure.
    #[error("node password rejected: {0}")]
    Password(String),
    /// 403 for another reason.
    #[error("the server does not let this token join ({0}): use the server's node-token")]
    Forbidden(String),
    /// It will be, in a moment.
    #[error("the server is not ready yet ({0}); trying on")]
    NotReady(String),
    /// Its clock is behind, and what it signs good for nothing.
    #[error(
        "the server signed a certificate that is over already (good from {} to {}, seconds since 1970): its clock is behind; set it. \
         This node keeps what it has",
        window.from, window.until
    )]
    Dead {
        /// From when to when it would be good.
        window: Window,
    },
    /// What came is not what a supervisor sends.
    #[error("the server at {path} answered something else than expected ({reason}): is this a K3s server?")]
    Odd {
        /// Of the request.
        path: String,
        /// Why.
        reason: String,
    },
    /// A token, or a certificate of an earlier join.
    #[error("there is neither a token nor a usable certificate of an earlier join: give --token")]
    NoCredential,
    /// The token is malformed.
    #[error("the token cannot be used: {0}")]
    BadToken(#[from] TokenError),
    /// Keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Certificates.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Files.
    #[error("cannot keep the node's files in the data directory: {0}")]
    Disk(#[from] io::Error),
}

impl JoinError {
    /// Whether another address may do better: what answered is silent, or no server of this cluster.
    pub(super) const fn is_astray(&self) -> bool {
        self.is_strange() || matches!(self, Self::Unreachable { .. } | Self::Odd { .. })
    }

    /// Whether it is certain that another address does better: what answered is of another cluster, or signs what is good for
    /// nothing. One slow or odd answer says neither.
    pub(super) const fn is_strange(&self) -> bool {
        match self {
            Self::CaHash { .. } | Self::OtherCa { .. } | Self::Untrusted { .. } | Self::Dead { .. } => true,
            Self::Unreachable { .. }
            | Self::Odd { .. }
            | Self::Token(_)
            | Self::Certificate(_)
            | Self::Node(_)
            | Self::Password(_)
            | Self::Forbidden(_)
            | Self::NotReady(_)
            | Self::LostCa { .. }
            | Self::NoCredential
            | Self::BadToken(_)
            | Self::Key(_)
            | Self::Trust(_)
            | Self::Disk(_) => false,
        }
    }

    /// What an answer that is no success says. A 403 is about the password when its words say so (protocol 2.5).
    pub(super) fn of_status(status: &Status, path: &str, node: &str) -> Self {
        let message = status.message.clone();
        match status.code {
            400 => Self::Node(message),
            // Our own servers say where the right one is.
            401 if message.contains("node-token") => Self::Token(message),
            401 => Self::Token(format!(
                "{message}: take it from /var/lib/rancher/k3s/server/node-token on the server"
            )),
            403 if message.contains("kubectl delete node") => Self::Password(message),
            403 if message.to_ascii_lowercase().contains("password") => Self::Password(format!(
                "{message}: another machine is called {node}, or this one lost its password; use --node-name or \
                 --with-node-id, or, if it is the same machine, run \"kubectl delete node {node}\""
            )),
            403 if message.contains("--node-name") => Self::Node(message),
            403 => Self::Forbidden(message),
            429 | 500..=599 => Self::NotReady(message),
            code => Self::Odd {
                path: path.into(),
                reason: match message.starts_with(&code.to_string()) {
                    true => message,
                    false => format!("{code} {message}"),
                },
            },
        }
    }

    pub(super) fn of_transport(error: &TransportError, server: &str) -> Self {
        let (server, reason) = (server.to_owned(), error.to_string());
        match error {
            error if is_refusal(error) => Self::Certificate(reason),
            TransportError::Tls { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                Self::Untrusted { server, reason }
            }
            TransportError::TooLong => Self::Odd { path: server, reason },
            TransportError::Connect { .. }
            | TransportError::Tls { .. }
            | TransportError::Name(_)
            | TransportError::Http(_)
            | TransportError::Timeout { .. } => Self::Unreachable { server, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::status::Reason;

    #[test]
    fn every_refusal_names_its_cure_once() {
        let cases = [
            (Reason::Unauthorized, "Unauthorized", "node-token"),
            (Reason::Unauthorized, "wrong; see server/node-token", "node-token"),
            (
                Reason::Forbidden,
                "unable to verify password for node pi",
                "kubectl delete node pi",
            ),
            (
                Reason::Forbidden,
                "password of pi differs: kubectl delete node pi",
                "kubectl delete node pi",
            ),
            (Reason::Forbidden, "not in group k3s:agent", "node-token"),
        ];
        for (reason, message, cure) in cases {
            let error = JoinError::of_status(&Status::failure(reason, message), "/v1-k3s/config", "pi").to_string();
            assert!(error.contains(message), "{error}");
            assert_eq!(error.matches(cure).count(), 1, "{error}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_believed_names_the_clock_the_name_and_what_may_be_in_between() {
        let (server, reason) = ("https://lb:6443".to_owned(), "not valid for name".to_owned());
        let error = JoinError::Untrusted { server, reason }.to_string();
        for part in ["clock", "--tls-san", "ends TLS"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_name_that_no_node_may_have_is_not_laid_on_the_token() {
        let status = Status::failure(Reason::Forbidden, "\"box\" is the API server's own: set --node-name");
        let error = JoinError::of_status(&status, "/v1-k3s/serving-kubelet.crt", "box");
        assert!(matches!(error, JoinError::Node(_)), "{error}");
    }
}
