//! A pod's volumes: folders on the node that its containers see.
//!
//! `payload.rs` decides what files a volume holds (pure), `atomic.rs` writes them so that a reader sees all old or all
//! new, `token.rs` keeps service account tokens fresh. Layout as in the kubelet: `pods/UID/volumes/PLUGIN/NAME`.
//! Persistent volume claims are not in this slice and are refused by name.

pub mod atomic;
pub mod mounts;
pub mod payload;
pub mod token;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::disk::blocking;
use super::downward::Addresses;
use super::objects::Objects;
use crate::wire::pod::{HostPath, Pod, Volume, quantity};

/// Why a volume is not there. The text is for the person who wrote the pod.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// What it refers to is missing, or it is written wrongly.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
    Content {
        /// Which.
        volume: String,
        /// Why.
        reason: String,
    },
    /// The node's own files.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Io {
        /// Which.
        volume: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How a volume is kept on the node.
enum Store {
    Disk,
    Memory(Option<u64>),
}

/// The folder of a pod.
pub fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// Where a volume's files are on the node; `None` for kinds that this slice does not have.
pub fn path(root: &Path, uid: &str, volume: &Volume) -> Option<PathBuf> {
    if let Some(host) = &volume.host_path {
        return Some(PathBuf::from(&host.path));
    }
    let plugin = match () {
        () if volume.empty_dir.is_some() => "kubernetes.io~empty-dir",
        () if volume.config_map.is_some() => "kubernetes.io~configmap",
        () if volume.secret.is_some() => "kubernetes.io~secret",
        () if volume.downward_api.is_some() => "kubernetes.io~downward-api",
        () if volume.projected.is_some() => "kubernetes.io~projected",
        () => return None,
    };
    Some(pod_dir(root, uid).join("volumes").join(plugin).join(&volume.name))
}

/// Which volumes are looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// All: the pod is to start.
    All,
    /// Those whose files come from the API, for containers that run. What these fill is theirs, and a token that they hold is
    /// not taken away because there is none to replace it.
    FromApi,
}

/// Makes (or brings up to date) a pod's volumes: each that can be had, whatever is wrong with the others.
///
/// # Errors
/// A [`VolumeError`] for each that cannot.
pub async fn set_up(
    root: &Path,
    pod: &Pod,
    which: Which,
    objects: &Objects,
    addresses: &Addresses,
    tokens: &token::Tokens,
) -> Result<(), Vec<VolumeError>> {
    let mut faults = Vec::new();
    for volume in &pod.spec.volumes {
        let payload = payload::of(volume, pod, objects, addresses, tokens);
        if which == Which::FromApi && (matches!(payload, Ok(None)) || tokens.lack(volume)) {
            continue;
        }
        if let Err(fault) = set_up_one(root, pod, volume, payload).await {
            faults.push(fault);
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

async fn set_up_one(
    root: &Path,
    pod: &Pod,
    volume: &Volume,
    payload: Result<Option<payload::Payload>, String>,
) -> Result<(), VolumeError> {
    let content = |reason: String| VolumeError::Content {
        volume: volume.name.clone(),
        reason,
    };
    let uid = &pod.meta.uid;
    let path = path(root, uid, volume)
        .ok_or_else(|| content("this kind of volume is not supported by this agent yet".into()))?;
    let files = payload.map_err(content)?;
    let group = pod.spec.security_context.fs_group.and_then(|it| u32::try_from(it).ok());
    let (own, marker) = (volume.clone(), ready_marker(root, uid, volume));
    let made = blocking(move || make(&own, &path, &marker, files, group)).await;
    made.map_err(|source| VolumeError::Io {
        volume: volume.name.clone(),
        source,
    })
}

/// A file that says that an emptyDir has been handed over: its mode and owner are the containers' from then on.
///
/// Source: Kubernetes v1.36, `pkg/volume/emptydir` and `pkg/volume/util` (`SetReady`).
fn ready_marker(root: &Path, uid: &str, volume: &Volume) -> PathBuf {
    let folder = pod_dir(root, uid).join("plugins").join("kubernetes.io~empty-dir");
    folder.join(&volume.name).join("ready")
}

fn make(
    volume: &Volume,
    path: &Path,
    marker: &Path,
    files: Option<payload::Payload>,
    group: Option<u32>,
) -> io::Result<()> {
    if let Some(host) = &volume.host_path {
        return host_path(host);
    }
    let store = match (
        &volume.empty_dir,
        volume.config_map.is_some() || volume.downward_api.is_some(),
    ) {
        (Some(empty), _) if empty.medium == "Memory" => {
            let limit = empty
                .size_limit
                .as_ref()
                .and_then(quantity)
                .map(|it| it.as_bytes().get());
            Store::Memory(limit)
        }
        (Some(_), _) | (None, true) => Store::Disk,
        (None, false) => Store::Memory(None), // secrets and tokens never reach the disk
    };
    fs::create_dir_all(path)?;
    let mounted = match store {
        Store::Memory(limit) => mount_tmpfs(path, limit)?,
        Store::Disk => false,
    };
    match files {
        Some(files) => {
            atomic::write(path, files, group)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        }
        None if mounted || !marker.exists() => hand_over(path, marker, group),
        None => Ok(()),
    }
}

/// Makes a new emptyDir everybody's (its group's, if it has one), and notes that this is done.
fn hand_over(path: &Path, marker: &Path, group: Option<u32>) -> io::Result<()> {
    let mode = match group {
        Some(group) => {
            std::os::unix::fs::chown(path, None, Some(group))?;
            0o2777
        }
        None => 0o777,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    marker.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(marker, b"")
}

/// Whether it was mounted now: it is empty and root's then.
fn mount_tmpfs(path: &Path, limit: Option<u64>) -> io::Result<bool> {
    if is_mount_point(path)? {
        return Ok(false);
    }
    let options = limit.map(|bytes| format!("size={bytes}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, options.as_deref())?;
    Ok(true)
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = path.parent().unwrap_or(path);
    Ok(fs::symlink_metadata(path)?.dev() != fs::symlink_metadata(parent)?.dev())
}

/// Source: Kubernetes v1.36, `pkg/volume/hostpath` `hostPathTypeChecker`.
fn host_path(host: &HostPath) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = Path::new(&host.path);
    let found = fs::metadata(path);
    let fits = |is: bool| {
        let error = || {
            io::Error::other(format!(
                "hostPath type check failed: {} is not a {}",
                host.path, host.kind
            ))
        };
        if is { Ok(()) } else { Err(error()) }
    };
    match (host.kind.as_str(), found) {
        ("", Ok(_)) => Ok(()),
        ("", Err(_)) => fs::create_dir_all(path), // what the runtimes behind a kubelet do with a missing source
        ("DirectoryOrCreate", Err(_)) => fs::create_dir_all(path),
        ("FileOrCreate", Err(_)) => fs::write(path, b""),
        ("DirectoryOrCreate" | "Directory", Ok(it)) => fits(it.is_dir()),
        ("FileOrCreate" | "File", Ok(it)) => fits(it.is_file()),
        ("Socket", Ok(it)) => fits(it.file_type().is_socket()),
        ("CharDevice", Ok(it)) => fits(it.file_type().is_char_device()),
        ("BlockDevice", Ok(it)) => fits(it.file_type().is_block_device()),
        (_, Ok(_)) => fits(false),
        (_, Err(error)) => Err(error),
    }
}

/// Takes a pod's folder away, file systems in it first.
///
/// # Errors
/// The kernel's; try again later.
pub async fn tear_down(root: &Path, uid: &str) -> io::Result<()> {
    let folder = pod_dir(root, uid);
    blocking(move || {
        let volumes = folder.join("volumes");
        for plugin in entries(&volumes)? {
            for volume in entries(&plugin)? {
                if volume.is_dir() && is_mount_point(&volume)? {
                    umount2(&volume, MntFlags::MNT_DETACH).map_err(io::Error::from)?;
                }
            }
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    })
    .await
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error),
    }
}

/// The place of a `subPath` in a volume: inside it, whatever symlinks say; a missing folder is made.
///
/// # Errors
/// A text, if it leads outside or cannot be made.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    let relative = Path::new(sub);
    let plain = relative
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if !plain {
        return Err(format!("subPath {sub:?} must stay inside the volume"));
    }
    let failed = |error: io::Error| format!("failed to prepare subPath {sub:?}: {error}");
    let base = fs::canonicalize(volume).map_err(failed)?;
    let mut place = base.clone();
    for part in relative.components() {
        let next = place.join(part);
        if let Err(error) = fs::symlink_metadata(&next) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(failed(error));
            }
            fs::create_dir(&next).map_err(failed)?;
        }
        place = fs::canonicalize(&next).map_err(failed)?;
        if !place.starts_with(&base) {
            return Err(format!("subPath {sub:?} leads outside the volume"));
        }
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scratch::TempDir;

    #[tokio::test]
    async fn volumes_are_made_brought_up_to_date_and_taken_away() {
        let dir = TempDir::new("volumes");
        let pod = Pod::of(&json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u1"},
            "spec": {"volumes": [
                {"name": "scratch", "emptyDir": {}},
                {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "sec", "secret": {"secretName": "s", "defaultMode": 256}},
                {"name": "host", "hostPath": {"path": dir.path().join("h"), "type": "DirectoryOrCreate"}},
            ]}
        }))
        .unwrap();
        let mut objects = Objects::default();
        objects.insert(
            super::super::objects::Kind::Secret,
            "s",
            Some(json!({"data": {"k": "djE="}})),
        );
        let run = |objects: Objects| {
            let (pod, dir) = (pod.clone(), dir.path().to_owned());
            let (addresses, tokens) = (Addresses::default(), token::Tokens::default());
            async move { set_up(&dir, &pod, Which::All, &objects, &addresses, &tokens).await }
        };
        run(objects.clone()).await.unwrap();
        let secret = path(dir.path(), "u1", &pod.spec.volumes[2]).unwrap();
        assert_eq!(fs::read(secret.join("k")).unwrap(), b"v1");
        assert!(is_mount_point(&secret).unwrap(), "secrets are in memory");
        assert!(is_mount_point(&path(dir.path(), "u1", &pod.spec.volumes[1]).unwrap()).unwrap());
        assert_eq!(
            fs::metadata(secret.join("k")).unwrap().permissions().mode() & 0o777,
            0o400
        );
        objects.insert(
            super::super::objects::Kind::Secret,
            "s",
            Some(json!({"data": {"k": "djI="}})),
        );
        run(objects).await.unwrap();
        assert_eq!(fs::read(secret.join("k")).unwrap(), b"v2");
        assert!(dir.path().join("h").is_dir());
        tear_down(dir.path(), "u1").await.unwrap();
        assert!(!pod_dir(dir.path(), "u1").exists());
        assert!(dir.path().join("h").is_dir(), "the host's own files stay");
    }

    #[tokio::test]
    async fn what_containers_made_of_their_volumes_stays_and_a_bad_volume_holds_none_up() {
        let dir = TempDir::new("kept-volumes");
        let pod = Pod::of(&json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u1", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c"}], "volumes": [
                {"name": "scratch", "emptyDir": {}},
                {"name": "host", "hostPath": {"path": dir.path().join("h")}},
                {"name": "bad", "configMap": {"name": "missing"}},
                {"name": "worse", "secret": {"secretName": "missing"}},
                {"name": "last", "downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                ]}},
            ]}
        }))
        .unwrap();
        let (objects, addresses, tokens) = (Objects::default(), Addresses::default(), token::Tokens::default());
        let run = |which: Which| set_up(dir.path(), &pod, which, &objects, &addresses, &tokens);
        let faults = run(Which::All).await.unwrap_err();
        let names: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(
            names[0].contains("\"bad\"") && names[1].contains("\"worse\""),
            "{names:?}"
        );
        let place = |index: usize| path(dir.path(), "u1", &pod.spec.volumes[index]).unwrap();
        assert_eq!(fs::read(place(4).join("labels")).unwrap(), b"a=\"b\"");
        let mode = || fs::metadata(place(0)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o777);
        fs::set_permissions(place(0), fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_dir(place(1)).unwrap();
        fs::remove_file(place(4).join("..data")).unwrap();
        run(Which::FromApi).await.unwrap_err();
        assert_eq!(mode(), 0o700, "a refresh leaves it alone");
        assert!(!place(1).exists(), "and does not bring a host's folder back");
        assert!(place(4).join("labels").exists(), "while files from the API come back");
        run(Which::All).await.unwrap_err();
        assert_eq!(mode(), 0o700, "so does a second start of the pod");
    }

    #[test]
    fn a_sub_path_stays_inside_its_volume() {
        let dir = TempDir::new("subpath");
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        assert!(sub_path(dir.path(), "a/b").unwrap().is_dir());
        for bad in ["../x", "/etc", "out", "out/passwd"] {
            assert!(sub_path(dir.path(), bad).is_err(), "{bad}");
        }
    }
}
