//! What a controller can see: the present state, from the cache or, in tests, from a list of objects.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use agent::wire::object::{Meta, text};
use agent::wire::selector::{Fields, Labels};
use jiff::Timestamp;
use serde_json::Value;

use crate::cache::{Cache, Filter, Item};
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

/// Objects that are read one by one, as they are taken: a tree takes ten times the bytes that it is made of, so whoever
/// holds many at once has a reason.
pub type Found<'w> = Box<dyn Iterator<Item = Value> + 'w>;

/// The present state. Reads never wait, and hold every write acknowledged before.
pub trait World {
    /// One object.
    fn get(&self, what: What, namespace: &str, name: &str) -> Option<Value>;
    /// The objects of a kind in a namespace (`None`: all) with these labels, in key order.
    fn list(&self, what: What, namespace: Option<&str>, labels: &Labels) -> Found<'_>;
    /// The pods of a namespace that have these labels, or this uid as an owner, in key order.
    fn selected_or_owned(&self, namespace: &str, labels: &Labels, owner: &str) -> Found<'_>;
    /// The pods bound to a node.
    fn on_node(&self, node: &str) -> Found<'_>;
    /// Which they are.
    fn keys_on_node(&self, node: &str) -> Vec<Key>;
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

    fn items(&self, prefix: &str, filter: &Filter) -> Vec<Arc<Item>> {
        // Only a past revision can be out of reach.
        let page = self.cache.list(prefix, filter, None, None, None);
        page.map(|page| page.items).unwrap_or_default()
    }

    fn pods_on(&self, node: &str) -> Vec<Arc<Item>> {
        let filter = Fields::parse(&format!("spec.nodeName={node}")).map(|fields| Filter {
            fields,
            ..Filter::default()
        });
        filter.map_or_else(|_| Vec::new(), |filter| self.items(PODS, &filter))
    }
}

/// Where pods are in the store.
const PODS: &str = "/registry/pods/";

fn found<'w>(items: Vec<Arc<Item>>) -> Found<'w> {
    Box::new(items.into_iter().map(|item| item.value()))
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

    fn list(&self, what: What, namespace: Option<&str>, labels: &Labels) -> Found<'_> {
        let Some(row) = kinds::find(what.group, what.version, what.plural) else {
            return found(Vec::new());
        };
        let prefix = namespace.map_or_else(
            || row.prefix.to_owned(),
            |namespace| format!("{}{namespace}/", row.prefix),
        );
        let filter = Filter {
            labels: labels.clone(),
            ..Filter::default()
        };
        found(self.items(&prefix, &filter))
    }

    fn selected_or_owned(&self, namespace: &str, labels: &Labels, owner: &str) -> Found<'_> {
        let filter = Filter {
            labels: labels.clone(),
            ..Filter::default()
        };
        let prefix = format!("{PODS}{namespace}/");
        let owned = self.cache.by_owner(owner).into_iter();
        let owned = owned.filter(|item| item.key.starts_with(&prefix));
        let mut all: Vec<_> = self.items(&prefix, &filter).into_iter().chain(owned).collect();
        all.sort_by(|one, other| one.key.cmp(&other.key));
        all.dedup_by(|one, other| one.key == other.key);
        found(all)
    }

    fn on_node(&self, node: &str) -> Found<'_> {
        found(self.pods_on(node))
    }

    fn keys_on_node(&self, node: &str) -> Vec<Key> {
        let pods = self.pods_on(node);
        let key = |item: &Arc<Item>| {
            let (namespace, name) = item.key.strip_prefix(PODS)?.split_once('/')?;
            Some(Key {
                namespace: namespace.into(),
                name: name.into(),
            })
        };
        pods.iter().filter_map(key).collect()
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

        fn these(&self, wanted: impl Fn(What, &Value) -> bool) -> Found<'_> {
            let these = self.objects.iter().filter(|(kind, object)| wanted(*kind, object));
            let these: Vec<Value> = these.map(|(_, object)| object.clone()).collect();
            Box::new(these.into_iter())
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

        fn list(&self, what: What, namespace: Option<&str>, labels: &Labels) -> Found<'_> {
            let wanted = |object: &Value| {
                namespace.is_none_or(|namespace| Key::of(object).namespace == namespace)
                    && selects(labels, &Meta::of(object))
            };
            self.these(|kind, object| kind == what && wanted(object))
        }

        fn selected_or_owned(&self, namespace: &str, labels: &Labels, owner: &str) -> Found<'_> {
            let wanted = |meta: &Meta| {
                let owned = meta.owner_references.iter().any(|one| one.uid == owner);
                meta.namespace == namespace && (owned || selects(labels, meta))
            };
            self.these(|kind, object| kind == What::PODS && wanted(&Meta::of(object)))
        }

        fn on_node(&self, node: &str) -> Found<'_> {
            self.these(|kind, object| kind == What::PODS && text(object, &["spec", "nodeName"]) == node)
        }

        fn keys_on_node(&self, node: &str) -> Vec<Key> {
            self.on_node(node).map(|pod| Key::of(&pod)).collect()
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
