//! Image names as Docker and containerd write them in full.

/// The full form of a reference: `busybox` → `docker.io/library/busybox:latest`. A digest stays; an id
/// (`sha256:` and 64 digits) stays as it is.
///
/// `None` for what no registry would take: empty, over 512 bytes, upper case or spaces in the path.
/// Source: distribution/reference v0.6 `ParseDockerRef`.
pub fn normalise(reference: &str) -> Option<String> {
    if is_id(reference) {
        return Some(reference.to_owned());
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    // A colon after the last slash begins a tag, one before it a port.
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let (host, path) = match path.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("docker.io", path),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let library = if host == "docker.io" && !path.contains('/') {
        "library/"
    } else {
        ""
    };
    let sound = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/".contains(&byte);
    let tag_sound =
        |tag: &str| !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if path.is_empty() || reference.len() > 512 || !path.bytes().all(sound) || !tag.is_none_or(tag_sound) {
        return None;
    }
    Some(match (tag, digest) {
        (_, Some(digest)) if is_id(digest) => format!("{host}/{library}{path}@{digest}"),
        (_, Some(_)) => return None,
        (Some(tag), None) => format!("{host}/{library}{path}:{tag}"),
        (None, None) => format!("{host}/{library}{path}:latest"),
    })
}

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_id(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("rancher/mirrored-pause:3.6", "docker.io/rancher/mirrored-pause:3.6"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("quay.io/a/b:V1", "quay.io/a/b:V1"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ] {
            assert_eq!(normalise(short).as_deref(), Some(full), "{short}");
            assert_eq!(normalise(full).as_deref(), Some(full), "{full} again");
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(normalise(&digest), Some(digest.clone()));
        assert_eq!(
            normalise(&format!("nginx:1@{digest}")),
            Some(format!("docker.io/library/nginx@{digest}"))
        );
    }

    #[test]
    fn what_no_registry_takes_is_refused() {
        for bad in ["", "Busybox", "a b", "a:", "a@sha256:12", "../../etc:1 "] {
            assert_eq!(normalise(bad), None, "{bad:?}");
        }
    }
}
