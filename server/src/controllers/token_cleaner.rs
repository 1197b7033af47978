//! Removes bootstrap tokens whose end has come.
//!
//! Source: Kubernetes v1.36 `pkg/controller/bootstrap/tokencleaner.go`.

use std::time::Duration;

use super::action::{Action, Plan};
use super::runner::{Controller, Source};
use super::world::{Key, World};
use crate::kinds::bootstrap_token::{BootstrapToken, NAMESPACE};
use crate::request::What;

/// The controller.
#[derive(Debug)]
pub struct TokenCleaner;

impl Controller for TokenCleaner {
    fn name(&self) -> &'static str {
        "token-cleaner"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::own(What::SECRETS).within(NAMESPACE)]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let Some(secret) = world.get(What::SECRETS, &key.namespace, &key.name) else {
            return plan;
        };
        let Some(end) = BootstrapToken::read(&secret).and_then(|token| token.expires) else {
            return plan;
        };
        match u64::try_from(end.as_second().saturating_sub(world.now().as_second())) {
            Ok(seconds) if seconds > 0 => plan.after(Duration::from_secs(seconds)),
            _ => plan.push(Action::delete(What::SECRETS, &secret)),
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use agent::wire::token::Bootstrap;
    use serde_json::json;

    use super::super::world::fake::Objects;
    use super::*;

    fn plan(expires: Option<i64>) -> Plan {
        let token = BootstrapToken {
            token: Bootstrap::parse("abcdef.0123456789abcdef").unwrap(),
            description: String::new(),
            expires: None,
            usages: Vec::new(),
            groups: Vec::new(),
        };
        let now = Objects::new(Vec::new()).now();
        let expires = expires.map(|seconds| now + jiff::SignedDuration::from_secs(seconds));
        let objects = vec![
            (What::SECRETS, BootstrapToken { expires, ..token }.secret()),
            (
                What::SECRETS,
                json!({ "metadata": { "name": "other", "namespace": "kube-system" }, "type": "Opaque" }),
            ),
        ];
        let key = |name: &str| Key {
            namespace: "kube-system".into(),
            name: name.into(),
        };
        let world = Objects::new(objects);
        assert!(TokenCleaner.plan(&world, &key("other")).actions.is_empty());
        TokenCleaner.plan(&world, &key("bootstrap-token-abcdef"))
    }

    #[test]
    fn a_token_goes_when_its_end_has_come_and_not_before() {
        for (expires, goes, again) in [
            (Some(-1), true, None),
            (Some(0), true, None),
            (Some(90), false, Some(Duration::from_secs(90))),
            (None, false, None),
        ] {
            let plan = plan(expires);
            assert_eq!(!plan.actions.is_empty(), goes, "{expires:?}");
            assert_eq!(plan.again, again, "{expires:?}");
        }
    }
}
