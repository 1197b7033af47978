//! Which files a volume holds. Pure.

use std::collections::BTreeMap;

use super::token::Tokens;
use crate::kubelet::downward::{self, Addresses};
use crate::kubelet::objects::{Kind, Objects};
use crate::wire::pod::{DownwardApi, KeyedSource, Pod, Volume};

/// One file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct File {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Permissions.
    pub mode: u32,
}

/// Files by their path in the volume.
pub type Payload = BTreeMap<String, File>;

const DEFAULT_MODE: u32 = 0o644;

/// The files of a volume; `None` for kinds that the pod itself fills.
///
/// # Errors
/// A text that names what is missing.
pub fn of(
    volume: &Volume,
    pod: &Pod,
    objects: &Objects,
    addresses: &Addresses,
    tokens: &Tokens,
) -> Result<Option<Payload>, String> {
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        keyed(&mut files, Kind::ConfigMap, source, DEFAULT_MODE, objects, pod)?;
    } else if let Some(source) = &volume.secret {
        keyed(&mut files, Kind::Secret, source, DEFAULT_MODE, objects, pod)?;
    } else if let Some(source) = &volume.downward_api {
        fields(&mut files, source, DEFAULT_MODE, pod, addresses)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in &projected.sources {
            if let Some(source) = &source.config_map {
                keyed(&mut files, Kind::ConfigMap, source, mode, objects, pod)?;
            }
            if let Some(source) = &source.secret {
                keyed(&mut files, Kind::Secret, source, mode, objects, pod)?;
            }
            if let Some(source) = &source.downward_api {
                fields(&mut files, source, mode, pod, addresses)?;
            }
            if let Some(source) = &source.service_account_token
                && let Some(token) = tokens.text(source)
            {
                put(&mut files, &source.path, token.as_bytes().to_vec(), mode)?;
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

fn put(files: &mut Payload, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), String> {
    let bad =
        path.is_empty() || path.starts_with('/') || path.starts_with("..") || path.split('/').any(|part| part == "..");
    if bad {
        return Err(format!(
            "invalid path: {path:?} must be relative and must not contain \"..\""
        ));
    }
    files.insert(path.to_owned(), File { bytes, mode });
    Ok(())
}

fn keyed(
    files: &mut Payload,
    kind: Kind,
    source: &KeyedSource,
    mode: u32,
    objects: &Objects,
    pod: &Pod,
) -> Result<(), String> {
    let mode = source.default_mode.unwrap_or(mode);
    let Some(data) = objects.get(kind, &source.name) else {
        return if source.optional {
            Ok(())
        } else {
            Err(format!("{} \"{}\" not found", kind.lower(), source.name))
        };
    };
    if source.items.is_empty() {
        for key in data.keys() {
            put(files, key, data.bytes(key).unwrap_or_default(), mode)?;
        }
        return Ok(());
    }
    for item in &source.items {
        match data.bytes(&item.key) {
            Some(bytes) => put(files, &item.path, bytes, item.mode.unwrap_or(mode))?,
            None if source.optional => {}
            None => {
                let (namespace, name) = (&pod.meta.namespace, &source.name);
                return Err(format!(
                    "{} {namespace}/{name} references non-existent key: {}",
                    kind.lower(),
                    item.key
                ));
            }
        }
    }
    Ok(())
}

fn fields(
    files: &mut Payload,
    source: &DownwardApi,
    mode: u32,
    pod: &Pod,
    addresses: &Addresses,
) -> Result<(), String> {
    let mode = source.default_mode.unwrap_or(mode);
    let first = pod.spec.containers.first().ok_or("a pod without containers")?;
    for item in &source.items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(at), _) => downward::field(pod, &at.field_path, addresses)?,
            (None, Some(at)) => downward::resource(pod, first, at, addresses)?,
            (None, None) => continue,
        };
        put(files, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(volume: serde_json::Value, objects: &Objects) -> Result<Vec<(String, String, u32)>, String> {
        let object = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}], "volumes": [volume]}});
        let pod = Pod::of(&object).unwrap();
        let files = of(
            &pod.spec.volumes[0],
            &pod,
            objects,
            &Addresses::default(),
            &Tokens::default(),
        )?
        .unwrap();
        let text = |file: &File| String::from_utf8(file.bytes.clone()).unwrap();
        Ok(files
            .iter()
            .map(|(path, file)| (path.clone(), text(file), file.mode))
            .collect())
    }

    #[test]
    fn items_modes_and_optional_sources_are_honoured() {
        let mut objects = Objects::default();
        objects.insert(
            Kind::ConfigMap,
            "c",
            Some(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"z": "AA=="}})),
        );
        let all = run(json!({"configMap": {"name": "c"}}), &objects).unwrap();
        assert_eq!(all.len(), 3);
        let some = run(
            json!({"configMap": {"name": "c", "defaultMode": 256, "items": [{"key": "a", "path": "x/y"}, {"key": "b", "path": "b", "mode": 511}]}}),
            &objects,
        );
        assert_eq!(
            some.unwrap(),
            [("b".into(), "2".into(), 0o777), ("x/y".into(), "1".into(), 0o400)]
        );
        assert_eq!(
            run(json!({"secret": {"secretName": "s", "optional": true}}), &objects).unwrap(),
            []
        );
        assert_eq!(
            run(json!({"secret": {"secretName": "s"}}), &objects).unwrap_err(),
            "secret \"s\" not found"
        );
        let missing = run(
            json!({"configMap": {"name": "c", "items": [{"key": "q", "path": "q"}]}}),
            &objects,
        );
        assert_eq!(missing.unwrap_err(), "configmap ns/c references non-existent key: q");
    }

    #[test]
    fn no_path_leads_out_of_the_volume() {
        let mut objects = Objects::default();
        objects.insert(Kind::ConfigMap, "c", Some(json!({"data": {"a": "1"}})));
        for path in ["../x", "a/../../x", "/x", "..data"] {
            let volume = json!({"configMap": {"name": "c", "items": [{"key": "a", "path": path}]}});
            assert!(run(volume, &objects).is_err(), "{path}");
        }
    }

    #[test]
    fn projections_share_one_folder() {
        let mut objects = Objects::default();
        objects.insert(
            Kind::ConfigMap,
            "kube-root-ca.crt",
            Some(json!({"data": {"ca.crt": "CA"}})),
        );
        let files = run(
            json!({"projected": {"sources": [
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]}}),
            &objects,
        );
        let names: Vec<String> = files.unwrap().into_iter().map(|file| file.0).collect();
        assert_eq!(names, ["ca.crt", "namespace"]);
    }
}
