//! The ConfigMaps and Secrets that a pod names: which they are, fetched, kept for times without a server.
//!
//! They are kept in a file that only root reads: a node starts its pods with no server in reach.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::disk;
use super::ports::{Api, ApiFailure};
use crate::wire::object;
use crate::wire::pod::{Container, Pod};

/// Which kind of object.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// ConfigMap.
    ConfigMap,
    /// Secret.
    Secret,
}

impl Kind {
    /// As the API writes kinds.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    /// As messages write it.
    pub const fn lower(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

/// What was found; `None` is known not to exist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    found: BTreeMap<(Kind, String), Option<Value>>,
}

/// One object's data.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    kind: Kind,
    object: &'a Value,
}

impl Objects {
    /// Adds an object, or that there is none.
    pub fn insert(&mut self, kind: Kind, name: &str, object: Option<Value>) {
        self.found.insert((kind, name.into()), object);
    }

    /// The object's data, if it exists.
    pub fn get(&self, kind: Kind, name: &str) -> Option<Data<'_>> {
        let object = self.found.get(&(kind, name.to_owned()))?.as_ref()?;
        Some(Data { kind, object })
    }

    /// Takes what `other` holds too; whether anything changed.
    pub fn merge(&mut self, other: Self) -> bool {
        let mut changed = false;
        for (key, object) in other.found {
            if self.found.get(&key) != Some(&object) {
                self.found.insert(key, object);
                changed = true;
            }
        }
        changed
    }

    /// For the file that [`fetch`] falls back to.
    pub fn to_json(&self) -> Value {
        let each = self
            .found
            .iter()
            .map(|((kind, name), object)| json!([kind.name(), name, object]));
        Value::Array(each.collect())
    }

    fn from_json(value: &Value) -> Self {
        let mut objects = Self::default();
        for entry in value.as_array().into_iter().flatten() {
            let kind = match entry.get(0).and_then(Value::as_str) {
                Some("Secret") => Kind::Secret,
                _ => Kind::ConfigMap,
            };
            let Some(name) = entry.get(1).and_then(Value::as_str) else {
                continue;
            };
            objects.insert(kind, name, entry.get(2).filter(|it| it.is_object()).cloned());
        }
        objects
    }
}

impl<'a> Data<'a> {
    /// All keys.
    pub fn keys(self) -> BTreeSet<&'a str> {
        let maps = [self.object.get("data"), self.object.get("binaryData")];
        maps.into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect()
    }

    /// The bytes of a key.
    pub fn bytes(self, key: &str) -> Option<Vec<u8>> {
        let plain = object::at(self.object, &["data", key]).and_then(Value::as_str);
        let coded = object::at(self.object, &["binaryData", key]).and_then(Value::as_str);
        match (self.kind, plain, coded) {
            (Kind::ConfigMap, Some(text), _) => Some(text.as_bytes().to_vec()),
            (Kind::ConfigMap, None, Some(text)) | (Kind::Secret, Some(text), _) => STANDARD.decode(text).ok(),
            (Kind::ConfigMap | Kind::Secret, None, _) => None,
        }
    }

    /// The text of a key.
    pub fn text(self, key: &str) -> Option<String> {
        self.bytes(key)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Keys and texts of what may be environment variables (`data` only).
    pub fn text_entries(self) -> Vec<(String, String)> {
        let keys = self.object.get("data").and_then(Value::as_object).into_iter().flatten();
        keys.filter_map(|(key, _)| Some((key.clone(), self.text(key)?)))
            .collect()
    }
}

/// What the environment of a container refers to.
pub fn of_environment(container: &Container) -> BTreeSet<(Kind, String)> {
    let mut names = BTreeSet::new();
    for from in &container.env_from {
        names.extend(from.config_map_ref.iter().map(|it| (Kind::ConfigMap, it.name.clone())));
        names.extend(from.secret_ref.iter().map(|it| (Kind::Secret, it.name.clone())));
    }
    for from in container.env.iter().filter_map(|var| var.value_from.as_ref()) {
        names.extend(
            from.config_map_key_ref
                .iter()
                .map(|it| (Kind::ConfigMap, it.name.clone())),
        );
        names.extend(from.secret_key_ref.iter().map(|it| (Kind::Secret, it.name.clone())));
    }
    names
}

/// What the volumes of a pod refer to.
pub fn of_volumes(pod: &Pod) -> BTreeSet<(Kind, String)> {
    let mut names = BTreeSet::new();
    for volume in &pod.spec.volumes {
        names.extend(volume.config_map.iter().map(|it| (Kind::ConfigMap, it.name.clone())));
        names.extend(volume.secret.iter().map(|it| (Kind::Secret, it.name.clone())));
        for source in volume.projected.iter().flat_map(|it| &it.sources) {
            names.extend(source.config_map.iter().map(|it| (Kind::ConfigMap, it.name.clone())));
            names.extend(source.secret.iter().map(|it| (Kind::Secret, it.name.clone())));
        }
    }
    names
}

/// Fetches the named objects. With no server in reach those of an earlier fetch stand in, from `known` or else from the
/// file `kept`.
///
/// # Errors
/// [`ApiFailure`] when the server refuses, or nobody answers and an object was never fetched.
pub async fn fetch(
    api: &dyn Api,
    pod: &Pod,
    names: &BTreeSet<(Kind, String)>,
    known: &Objects,
    kept: &Path,
) -> Result<Objects, ApiFailure> {
    let mut objects = Objects::default();
    for (kind, name) in names {
        let path = format!("/api/v1/namespaces/{}/{}s/{name}", pod.meta.namespace, kind.lower());
        let found = match api.get(&path).await {
            Ok(mut object) => {
                object::remove(&mut object, &["metadata", "managedFields"]);
                Some(object)
            }
            Err(error) if error.code() == 404 => None,
            Err(error) if error.code() == 0 || error.code() >= 500 => {
                let key = (*kind, name.clone());
                let before = match known.found.get(&key) {
                    Some(object) => Some(object.clone()),
                    None => read(kept).await.found.remove(&key),
                };
                before.ok_or(error)?
            }
            Err(error) => return Err(error),
        };
        objects.insert(*kind, name, found);
    }
    Ok(objects)
}

async fn read(kept: &Path) -> Objects {
    let value = disk::read_json(kept).await;
    value.map(|value| Objects::from_json(&value)).unwrap_or_default()
}
