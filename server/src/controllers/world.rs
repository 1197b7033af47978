//! What a controller can see: the present state, from the cache or, in tests, from a list of objects.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use agent::wire::object::{Meta, text};
use agent::wire::selector::{Fields, Labels};
use jiff::Timestamp;
use serde_json::Value;

use crate::cache::{Cache, Filter};
use crate::kinds;
use crate::request::What;

/// Which object, within the kind that a controller looks after.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn of(object: &Value) -> Self {
        Self {
            namespace: text(object, &["metadata", "namespace"]).into(),
            name: text(object, &["metadata", "name"]).into(),
        }
    }
}

/// The present state. Reads never wait, and hold every write acknowledged before.
pub trait World {
    /// One object.
    fn get(&self, what: What, namespace: &str, name: &str) -> Option<Value>;
    /// The objects of a kind in a namespace (`None`: all) with these labels, in key order.
    fn list(&self, what: What, namespace: Option<&str>, labels: &Labels) -> Vec<Value>;
    /// The pods bound to a node.
    fn on_node(&self, node: &str) -> Vec<Value>;
    /// The object at a store key.
    fn at(&self, key: &str) -> Option<Value>;
    /// The store keys of the objects that name this uid as an owner.
    fn owned_by(&self, uid: &str) -> Vec<Arc<str>>;
    /// The wall clock, for ages of objects.
    fn now(&self) -> Timestamp;
    /// A clock that never jumps, for deadlines: time since some fixed moment of this process.
    fn uptime(&self) -> Duration;
}

/// The world as the cache has it.
pub struct Live<'a> {
    cache: &'a Cache,
    now: Timestamp,
}

impl<'a> Live<'a> {
    /// The present.
    pub fn now(cache: &'a Cache) -> Self {
        Self {
            cache,
            now: Timestamp::now(),
        }
    }
}

impl World for Live<'_> {
    fn get(&self, what: What, namespace: &str, name: &str) -> Option<Value> {
        let row = kinds::find(what.group, what.version, what.plural)?;
        let key = match row.namespaced {
            true => format!("{}{namespace}/{name}", row.prefix),
            false => format!("{}{name}", row.prefix),
        };
        self.cache.get(&key).map(|item| item.value())
    }

    fn list(&self, what: What, namespace: Option<&str>, labels: &Labels) -> Vec<Value> {
        let Some(row) = kinds::find(what.group, what.version, what.plural) else {
            return Vec::new();
        };
        let prefix = namespace.map_or_else(
            || row.prefix.to_owned(),
            |namespace| format!("{}{namespace}/", row.prefix),
        );
        let filter = Filter {
            labels: labels.clone(),
            ..Filter::default()
        };
        let page = self.cache.list(&prefix, &filter, None, None, None);
        page.map(|page| page.items.iter().map(|item| item.value()).collect())
            .unwrap_or_default()
    }

    fn on_node(&self, node: &str) -> Vec<Value> {
        let Some(row) = kinds::find("", "v1", "pods") else {
            return Vec::new();
        };
        let Ok(fields) = Fields::parse(&format!("spec.nodeName={node}")) else {
            return Vec::new();
        };
        let page = self.cache.list(
            row.prefix,
            &Filter {
                fields,
                ..Filter::default()
            },
            None,
            None,
            None,
        );
        page.map(|page| page.items.iter().map(|item| item.value()).collect())
            .unwrap_or_default()
    }

    fn at(&self, key: &str) -> Option<Value> {
        self.cache.get(key).map(|item| item.value())
    }

    fn owned_by(&self, uid: &str) -> Vec<Arc<str>> {
        self.cache
            .by_owner(uid)
            .iter()
            .map(|item| Arc::clone(&item.key))
            .collect()
    }

    fn now(&self) -> Timestamp {
        self.now
    }

    fn uptime(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// Reads the label selector of a workload; one that cannot be read selects nothing.
pub fn selector_of(object: &Value) -> Option<Labels> {
    use agent::wire::selector::LabelSelector;
    use serde::Deserialize;
    let selector = LabelSelector::deserialize(object.get("spec")?.get("selector")?).ok()?;
    let empty = selector.match_labels.is_empty() && selector.match_expressions.is_empty();
    (!empty).then(|| Labels::try_from(&selector).ok()).flatten()
}

/// Whether the object is on its way out.
pub fn terminating(meta: &Meta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// Whether the labels of `meta` are selected.
pub fn selects(labels: &Labels, meta: &Meta) -> bool {
    labels.matches(|key| meta.labels.get(key).map(String::as_str))
}

#[cfg(test)]
pub mod fake {
    //! A world made of a list.

    use super::*;

    /// Objects by what they are, at a fixed time. The store key of one is its kind, namespace and name.
    pub struct Objects {
        /// What there is.
        pub objects: Vec<(What, Value)>,
        /// What the clock that never jumps says.
        pub uptime: Duration,
    }

    impl Objects {
        /// A world of these.
        pub fn new(objects: Vec<(What, Value)>) -> Self {
            let uptime = Duration::from_secs(1000);
            Self { objects, uptime }
        }

        fn key(what: &What, object: &Value) -> Arc<str> {
            let Key { namespace, name } = Key::of(object);
            format!("{}/{namespace}/{name}", what.plural).into()
        }
    }

    impl World for Objects {
        fn get(&self, what: What, namespace: &str, name: &str) -> Option<Value> {
            let wanted = Key {
                namespace: namespace.into(),
                name: name.into(),
            };
            self.objects
                .iter()
                .find(|(kind, object)| *kind == what && Key::of(object) == wanted)
                .map(|(_, object)| object.clone())
        }

        fn list(&self, what: What, namespace: Option<&str>, labels: &Labels) -> Vec<Value> {
            let wanted = |object: &Value| {
                namespace.is_none_or(|namespace| Key::of(object).namespace == namespace)
                    && selects(labels, &Meta::of(object))
            };
            self.objects
                .iter()
                .filter(|(kind, object)| *kind == what && wanted(object))
                .map(|(_, object)| object.clone())
                .collect()
        }

        fn on_node(&self, node: &str) -> Vec<Value> {
            let pods = self.list(What::PODS, None, &Labels::everything());
            pods.into_iter()
                .filter(|pod| text(pod, &["spec", "nodeName"]) == node)
                .collect()
        }

        fn at(&self, key: &str) -> Option<Value> {
            self.objects
                .iter()
                .find(|(what, object)| *Self::key(what, object) == *key)
                .map(|(_, object)| object.clone())
        }

        fn owned_by(&self, uid: &str) -> Vec<Arc<str>> {
            let owned = |object: &Value| Meta::of(object).owner_references.iter().any(|owner| owner.uid == uid);
            self.objects
                .iter()
                .filter(|(_, object)| owned(object))
                .map(|(what, object)| Self::key(what, object))
                .collect()
        }

        fn uptime(&self) -> Duration {
            self.uptime
        }

        fn now(&self) -> Timestamp {
            "2026-11-25T12:00:00Z".parse().unwrap()
        }
    }
}
