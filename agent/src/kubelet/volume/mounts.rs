//! Which files of the node a container sees, and where.

use std::io;
use std::path::{Path, PathBuf};

use crate::kubelet::env::expand;
use crate::runtime::Mount;
use crate::wire::pod::{Container, Pod};

/// Files of its own that a container sees beside its volumes: source and target.
pub type Extras = Vec<(PathBuf, &'static str)>;

/// All mounts of a container, parents before what is mounted below them. Makes folders of `subPath`s: call it off the
/// agent's thread.
///
/// # Errors
/// A text that names the volume, for `CreateContainerConfigError`.
pub fn mounts(
    root: &Path,
    pod: &Pod,
    container: &Container,
    env: &[(String, String)],
    extras: Extras,
) -> Result<Vec<Mount>, String> {
    let known = env.iter().cloned().collect();
    let mut all: Vec<Mount> = Vec::new();
    for mount in &container.volume_mounts {
        let volume = pod.spec.volumes.iter().find(|it| it.name == mount.name);
        let folder = volume.and_then(|it| super::path(root, &pod.meta.uid, it));
        let folder = folder.ok_or_else(|| format!("cannot find volume {:?} to mount into container", mount.name))?;
        let sub = match mount.sub_path_expr.as_str() {
            "" => mount.sub_path.clone(),
            expression => expand(expression, &known),
        };
        let source = if sub.is_empty() {
            folder
        } else {
            super::sub_path(&folder, &sub)?
        };
        all.push(Mount {
            source,
            target: Path::new("/").join(&mount.mount_path),
            read_only: mount.read_only,
            follow_host: matches!(mount.mount_propagation.as_str(), "HostToContainer" | "Bidirectional"),
        });
    }
    for (source, target) in extras {
        let taken = all.iter().any(|it| it.target == Path::new(target));
        if !taken {
            all.push(Mount {
                source,
                target: target.into(),
                ..Mount::default()
            });
        }
    }
    all.sort_by_key(|it| it.target.components().count());
    Ok(all)
}

/// Where an attempt of a container leaves its last words.
pub fn message_file(root: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    super::pod_dir(root, uid)
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

/// Makes the file, writable for whomever the container runs as.
///
/// # Errors
/// The kernel's.
pub fn make_message_file(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, b"")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scratch::TempDir;

    #[test]
    fn parents_are_mounted_before_what_lies_in_them() {
        let dir = TempDir::new("mounts");
        let pod = Pod::of(&json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
        "volumes": [{"name": "v", "hostPath": {"path": dir.path()}}],
        "containers": [{"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/etc/deep/er", "subPathExpr": "$(NAME)"},
            {"name": "v", "mountPath": "/etc", "readOnly": true},
        ]}]}}))
        .unwrap();
        let env = [("NAME".to_owned(), "sub".to_owned())];
        let extras = vec![(PathBuf::from("/x/hosts"), "/etc/hosts")];
        let all = mounts(Path::new("/r"), &pod, &pod.spec.containers[0], &env, extras).unwrap();
        let targets: Vec<&Path> = all.iter().map(|it| it.target.as_path()).collect();
        assert_eq!(targets, ["/etc", "/etc/hosts", "/etc/deep/er"].map(Path::new));
        assert!(all[0].read_only && !all[1].read_only);
        assert_eq!(all[2].source, dir.path().canonicalize().unwrap().join("sub"));
    }

    #[test]
    fn a_mount_of_no_volume_is_refused() {
        let pod = Pod::of(&json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}}))
        .unwrap();
        assert!(mounts(Path::new("/r"), &pod, &pod.spec.containers[0], &[], vec![]).is_err());
    }
}
