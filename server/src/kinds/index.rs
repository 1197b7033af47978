//! What the cache knows of an object beside its bytes: uid, labels, owners and the fields its kind can be selected by.
//!
//! Read in one pass over the JSON without building a tree: this runs for every object at start and for every write.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::cache::{Index, Indexer};
use crate::registry::resource::{Absent, Resource, SelectableField};

const UID: &[&str] = &["metadata", "uid"];

/// The index of any stored object, by the row its key belongs to.
pub fn indexer() -> Indexer {
    Arc::new(index)
}

/// The row whose objects live under this key.
pub fn of_key(key: &str) -> Option<&'static Arc<Resource>> {
    static ROWS: LazyLock<BTreeMap<&str, &Arc<Resource>>> = LazyLock::new(|| {
        let stored = super::table()
            .iter()
            .filter(|row| row.verbs.contains(&"get") && row.view.is_none());
        stored.map(|row| (row.prefix, row)).collect()
    });
    // A prefix has three slashes (`/registry/pods/`) or four (`/registry/services/specs/`).
    let mut slashes = key.match_indices('/').map(|(at, _)| at + 1).skip(2);
    let mut row = || key.get(..slashes.next()?).and_then(|prefix| ROWS.get(prefix).copied());
    row().or_else(row)
}

fn index(key: &str, value: &[u8]) -> Index {
    let row = of_key(key);
    let fields = row.map_or(&[][..], |row| row.fields);
    let mut found = Found {
        fields: vec![None; fields.len()],
        ..Found::default()
    };
    let wanted = fields
        .iter()
        .enumerate()
        .map(|(at, field)| (Slot::Field(at), field.path));
    let wanted = wanted.chain([
        (Slot::Uid, UID),
        (Slot::Labels, &["metadata", "labels"][..]),
        (Slot::Owners, &["metadata", "ownerReferences"][..]),
    ]);
    let walk = Walk {
        wanted: wanted.collect(),
        found: &mut found,
    };
    // What does not parse was stored by something else; it is listed, and matches by what was read so far.
    let _ = walk.deserialize(&mut serde_json::Deserializer::from_slice(value));
    let (namespace, name) = row.map_or((None, ""), |row| row.split_key(key));
    let identity = [("metadata.name", Some(name)), ("metadata.namespace", namespace)];
    let identity = identity
        .into_iter()
        .filter_map(|(path, text)| Some((path, Box::from(text?))));
    let texts = present(fields, found.fields);
    let others = fields
        .iter()
        .zip(texts)
        .filter_map(|(field, text)| Some((field.name, text?)));
    Index {
        uid: found.uid,
        labels: found.labels.into_iter().collect(),
        fields: identity.chain(others).collect(),
        owners: found.owners.into(),
    }
}

/// The texts of a row's fields, with what stands for those that are absent; `None` where nothing does.
fn present(fields: &[SelectableField], mut texts: Vec<Option<Box<str>>>) -> Vec<Option<Box<str>>> {
    for text in &mut texts {
        text.take_if(|text| text.is_empty());
    }
    let named = |name: &str| fields.iter().position(|field| field.name == name);
    for (at, field) in fields.iter().enumerate() {
        if texts.get(at).is_some_and(Option::is_some) {
            continue;
        }
        let instead = match field.absent {
            Absent::Is(text) => (!text.is_empty()).then(|| text.into()),
            Absent::As(name) => named(name).and_then(|at| texts.get(at).cloned().flatten()),
        };
        if let Some(place) = texts.get_mut(at) {
            *place = instead;
        }
    }
    texts
}

#[derive(Default)]
struct Found {
    uid: Box<str>,
    labels: BTreeMap<Box<str>, Box<str>>,
    owners: Vec<Box<str>>,
    fields: Vec<Option<Box<str>>>,
}

#[derive(Clone, Copy)]
enum Slot {
    Uid,
    Labels,
    Owners,
    /// The row's n-th selectable field.
    Field(usize),
}

/// Goes down the paths that are wanted from here and skips the rest.
struct Walk<'f> {
    wanted: Vec<(Slot, &'static [&'static str])>,
    found: &'f mut Found,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let below: Vec<_> = self
                .wanted
                .iter()
                .filter_map(|(slot, path)| match path.split_first() {
                    Some((first, rest)) if *first == key => Some((*slot, rest)),
                    _ => None,
                })
                .collect();
            match below.as_slice() {
                [] => drop(map.next_value::<IgnoredAny>()?),
                [(slot, [])] => map.next_value_seed(Leaf {
                    slot: *slot,
                    found: &mut *self.found,
                })?,
                _ => map.next_value_seed(Walk {
                    wanted: below,
                    found: &mut *self.found,
                })?,
            }
        }
        Ok(())
    }
}

/// One wanted value.
struct Leaf<'f> {
    slot: Slot,
    found: &'f mut Found,
}

impl Leaf<'_> {
    fn text(self, text: impl Into<Box<str>>) {
        match self.slot {
            Slot::Uid => self.found.uid = text.into(),
            Slot::Field(at) => {
                if let Some(place) = self.found.fields.get_mut(at) {
                    *place = Some(text.into());
                }
            }
            Slot::Labels | Slot::Owners => {}
        }
    }
}

impl<'de> DeserializeSeed<'de> for Leaf<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Leaf<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.text(text);
        Ok(())
    }

    fn visit_bool<E>(self, yes: bool) -> Result<(), E> {
        self.text(if yes { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.text(number.to_string());
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.text(number.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.text(number.to_string());
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if !matches!(self.slot, Slot::Labels) {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        while let Some((key, value)) = map.next_entry::<Box<str>, Box<str>>()? {
            self.found.labels.insert(key, value);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        #[derive(serde::Deserialize)]
        struct Owner {
            #[serde(default)]
            uid: Box<str>,
        }
        if !matches!(self.slot, Slot::Owners) {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        while let Some(owner) = list.next_element::<Owner>()? {
            self.found.owners.push(owner.uid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_row_and_a_foreign_key_none() {
        for (key, kind) in [
            ("/registry/pods/default/web", Some("Pod")),
            ("/registry/services/specs/default/web", Some("Service")),
            ("/registry/services/endpoints/default/web", Some("Endpoints")),
            ("/registry/minions/a", Some("Node")),
            (
                "/registry/apiextensions.k8s.io/customresourcedefinitions/a.b",
                Some("CustomResourceDefinition"),
            ),
            ("/registry/example.com/widgets/a/b", None),
            ("/bootstrap/x", None),
            ("x", None),
        ] {
            assert_eq!(of_key(key).map(|row| row.kind), kind, "{key}");
        }
    }

    #[test]
    fn an_index_holds_identity_labels_owners_and_the_fields_of_the_kind() {
        let pod = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"b":"2","a":"1"},"name":"web","ownerReferences":[
            {"uid":"o1","kind":"ReplicaSet"},{"uid":"o2"}],"uid":"u"},"spec":{"containers":[{"name":"x"}],"nodeName":"n1",
            "restartPolicy":"Always","hostNetwork":null},"status":{"phase":"Pending","podIP":"10.42.0.7"}}"#;
        let index = index("/registry/pods/default/web", pod);
        assert_eq!(&*index.uid, "u");
        let labels: Vec<(&str, &str)> = index.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(labels, [("a", "1"), ("b", "2")]);
        assert_eq!(index.owners.iter().map(|uid| &**uid).collect::<Vec<_>>(), ["o1", "o2"]);
        let fields: BTreeMap<&str, &str> = index.fields.iter().map(|(path, text)| (*path, &**text)).collect();
        let expected = [
            ("metadata.name", "web"),
            ("metadata.namespace", "default"),
            ("spec.hostNetwork", "false"),
            ("spec.nodeName", "n1"),
            ("spec.restartPolicy", "Always"),
            ("status.phase", "Pending"),
            ("status.podIP", "10.42.0.7"),
        ];
        assert_eq!(fields, BTreeMap::from(expected));
    }

    #[test]
    fn what_does_not_parse_still_has_a_name() {
        let index = index("/registry/configmaps/default/x", b"{\"metadata\":");
        assert_eq!(index.fields.len(), 2);
    }
}
