//! A node asks for a certificate: which node it says it is, whether it may be that one, and what it is given (2.3, 3.4).

use std::net::{IpAddr, SocketAddr};

use agent::join::address::is_here;
use agent::wire::join::{NODE_IP, NODE_NAME, NODE_PASSWORD};
use agent::wire::selector::is_dns_subdomain;
use agent::wire::status::{Reason, Status};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use jiff::Timestamp;
use rcgen::PublicKeyData as _;
use tracing::info;

use super::{Supervisor, body_of, header, plain};
use crate::http::{Body, Peer};
use crate::join::certificate::{key_hash, requested_key};
use crate::join::issue::{Node, issue};
use crate::join::register::{Claim, Refusal};
use crate::join::reserved::{Refused, Reserved};
use crate::join::route::{Certificate, NODES_GROUP};
use crate::peers;
use crate::request::User;

impl Supervisor {
    pub(super) async fn issue(
        &self,
        which: Certificate,
        request: Request<Incoming>,
        user: &User,
        peer: &Peer,
    ) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let now = Timestamp::now();
        let body = body_of(body).await?;
        let node = match which {
            Certificate::ClientKubelet | Certificate::ServingKubelet => {
                let node = node_of(&head.headers, user)?;
                self.is_no_server(&node, peer).await?;
                // A key that is shared with others, as old agents', proves nothing later.
                let key = requested_key(&body).filter(|_| which == Certificate::ClientKubelet);
                let key = key.map(|key| key_hash(&key.subject_public_key_info()));
                self.admit(&node, &head.headers, user, peer, key.as_deref(), now)
                    .await?;
                node
            }
            Certificate::KubeProxy | Certificate::K3sController => Node {
                name: String::new(),
                addresses: Vec::new(),
            },
        };
        let signed = issue(&self.parts.pki, which, &node, &body, now).map_err(Status::internal)?;
        info!(node = node.name, certificate = ?which, peer = %peer.address, user = user.name, "signed a certificate");
        Ok(plain(signed))
    }

    /// Whether the node is called nothing by which clients know the API.
    async fn is_no_server(&self, node: &Node, peer: &Peer) -> Result<(), Status> {
        let servers = peers::present_endpoints(&self.parts.client).await?;
        let servers: Vec<IpAddr> = servers.iter().map(SocketAddr::ip).collect();
        let allowed = Reserved::new(&self.parts.pki.names(), is_here).allows(node, &servers, peer.address.ip());
        // K3s' agents say at a 403 that the name is another's, and which flag gives the node one of its own (`pkg/agent/config`).
        allowed.map_err(|refused| match refused {
            Refused::Name(why) => Status::failure(Reason::Forbidden, why),
            Refused::Address(why) => Status::failure(Reason::BadRequest, why),
        })
    }

    /// Whether this caller may be this node (3.4).
    async fn admit(
        &self,
        node: &Node,
        headers: &HeaderMap,
        user: &User,
        peer: &Peer,
        key: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Status> {
        let register = &self.parts.register;
        if own_name(user).is_some() && !register.exists(&node.name).await? {
            let why = format!(
                "unable to verify node identity: node {:?} does not exist any more, so its certificate counts no longer; \
                 join again with a token",
                node.name
            );
            return Err(Status::failure(Reason::Unauthorized, why));
        }
        let password = header(headers, NODE_PASSWORD)
            .ok_or_else(|| Status::failure(Reason::BadRequest, "node password not set"))?;
        // Whatever the token says, the handshake has proved this.
        let shown = peer.caller.at(now).ok().flatten();
        let holds = |user: &User| own_name(user) == Some(&node.name);
        let claim = Claim {
            node: &node.name,
            password,
            proof: shown
                .filter(|holder| holds(&holder.user))
                .map(|holder| holder.key.as_str()),
            key,
        };
        register.admit(claim, now).await.map_err(|refusal| match &refusal {
            Refusal::Taken { .. } => Status::failure(Reason::Forbidden, refusal.to_string()),
            Refusal::Later { .. } => Status::unavailable(refusal.to_string()),
        })
    }
}

/// The name in a kubelet's identity.
pub(super) fn own_name(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.groups.iter().any(|group| group == NODES_GROUP).then_some(name)
}

/// Which node the headers name; a node cannot name another.
fn node_of(headers: &HeaderMap, user: &User) -> Result<Node, Status> {
    let bad = |why: String| Status::failure(Reason::BadRequest, why);
    // K3s v1.36 `pkg/nodepassword/validate.go` (`getNodeInfo`) lower-cases, too.
    let name = header(headers, NODE_NAME).ok_or_else(|| bad("node name not set".to_owned()))?;
    let name = name.to_ascii_lowercase();
    if !is_dns_subdomain(&name) {
        return Err(bad(format!(
            "node name {name:?} is not valid: use lower-case letters, digits, '-' and '.', or set --node-name"
        )));
    }
    if own_name(user).is_some_and(|own| own != name) {
        return Err(bad(format!("header node name {name:?} does not match {:?}", user.name)));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in header(headers, NODE_IP).unwrap_or_default().split(',') {
        let part = part.trim();
        match part.parse() {
            Ok(address) => addresses.push(address),
            Err(_) if part.is_empty() => {}
            Err(_) => return Err(Status::internal(format!("invalid node IP address {part:?}"))),
        }
    }
    Ok(Node { name, addresses })
}

#[cfg(test)]
mod tests {
    use super::super::tests::headers;
    use super::*;

    #[test]
    fn a_node_is_whom_its_headers_name_and_no_other() {
        let token = User::new("node", &["k3s:agent"]);
        let pi = User::new("system:node:pi", &["system:nodes"]);
        let node = node_of(&headers(&[(NODE_NAME, "pi"), (NODE_IP, "192.0.2.1, fd00::1,")]), &token).unwrap();
        assert_eq!((node.name.as_str(), node.addresses.len()), ("pi", 2));
        for (user, pairs, code, hint) in [
            (&token, vec![], 400, "node name not set"),
            (&token, vec![(NODE_NAME, " ")], 400, "node name not set"),
            (&token, vec![(NODE_NAME, "p_i")], 400, "lower-case"),
            (&token, vec![(NODE_NAME, "../x")], 400, "not valid"),
            (&token, vec![(NODE_NAME, "pi"), (NODE_IP, "1.2.3")], 500, "1.2.3"),
            (&pi, vec![(NODE_NAME, "other")], 400, "does not match"),
        ] {
            let status = node_of(&headers(&pairs), user).unwrap_err();
            assert_eq!(status.code, code, "{pairs:?}");
            assert!(status.message.contains(hint), "{pairs:?}: {}", status.message);
        }
        for name in ["pi", "Pi", "PI"] {
            let node = node_of(&headers(&[(NODE_NAME, name)]), &pi).unwrap();
            assert_eq!(node.name, "pi", "{name}");
        }
    }

    #[test]
    fn only_a_certificate_of_a_node_has_a_node_name() {
        assert_eq!(own_name(&User::new("system:node:pi", &["system:nodes"])), Some("pi"));
        assert_eq!(own_name(&User::new("system:node:pi", &[])), None, "not in the group");
        assert_eq!(own_name(&User::new("node", &["k3s:agent"])), None);
    }
}
