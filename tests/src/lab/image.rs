//! A small image, made here: busybox and what it is called by, as `docker save` would write it, and as an OCI layout.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

/// What its pods call it.
pub const NAME: &str = "registry.test/busybox:1";
/// The same content under a second tag, to roll to.
pub const OTHER: &str = "registry.test/busybox:2";
/// What is in the OCI archive: the same files, and `FORM=oci` in the environment.
pub const OCI: &str = "registry.test/busybox:oci";

/// Writes an OCI image layout as an archive into `folder`, with the layer that [`archive`] has left there, compressed.
pub fn oci_archive(folder: &Path) -> PathBuf {
    let (layer, layout) = (folder.join("image/layer.tar"), folder.join("layout"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], media: &str| {
        let scratch = layout.join("blob");
        fs::write(&scratch, bytes).unwrap();
        let sum = sum(&scratch);
        fs::rename(&scratch, blobs.join(&sum)).unwrap();
        let media = format!("application/vnd.oci.image.{media}");
        serde_json::json!({"mediaType": media, "digest": format!("sha256:{sum}"), "size": bytes.len()})
    };
    let packed = Command::new("gzip").arg("-c").arg(&layer).output().unwrap().stdout;
    let packed = blob(&packed, "layer.v1.tar+gzip");
    let config = configuration(&sum(&layer), &["PATH=/bin", "FORM=oci"]);
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [packed],
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    let name = serde_json::json!({"org.opencontainers.image.ref.name": OCI});
    manifest.as_object_mut().unwrap().insert("annotations".into(), name);
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let archive = folder.join("oci.tar");
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let members = ["oci-layout", "index.json", "blobs"];
    run(
        "tar",
        &[&["-C", &path(&layout), "-cf", &path(&archive)], &members[..]].concat(),
    );
    archive
}

/// An image's configuration; `layer` is the digest of its one layer, unpacked.
fn configuration(layer: &str, environment: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": environment, "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    })
}

/// A file's SHA-256, as digits.
fn sum(file: &Path) -> String {
    let printed = run("sha256sum", &[&file.to_string_lossy()]);
    printed.split_whitespace().next().unwrap().to_owned()
}

/// Writes the archive into `folder`.
pub fn archive(folder: &Path) -> PathBuf {
    let build = folder.join("image");
    let root = build.join("root");
    for inner in ["bin", "tmp", "etc"] {
        fs::create_dir_all(root.join(inner)).unwrap();
    }
    let busybox = run("sh", &["-c", "command -v busybox"]);
    fs::copy(busybox.trim(), root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "sleep", "ls", "wget", "id", "hostname", "env", "kill", "true", "false", "head", "grep",
        "stat", "chmod", "touch",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    let path = |path: &Path| path.to_string_lossy().into_owned();
    run(
        "tar",
        &["-C", &path(&root), "-cf", &path(&build.join("layer.tar")), "."],
    );
    let config = configuration(&sum(&build.join("layer.tar")), &["PATH=/bin"]);
    fs::write(build.join("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [NAME, OTHER], "Layers": ["layer.tar"]}]);
    fs::write(build.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = folder.join("image.tar");
    run(
        "tar",
        &[
            "-C",
            &path(&build),
            "-cf",
            &path(&archive),
            "manifest.json",
            "config.json",
            "layer.tar",
        ],
    );
    archive
}
