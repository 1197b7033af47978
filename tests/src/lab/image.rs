//! A small image, made here: busybox and what it is called by, as `docker save` would write it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::run;

/// What its pods call it.
pub const NAME: &str = "registry.test/busybox:1";
/// The same content under a second tag, to roll to.
pub const OTHER: &str = "registry.test/busybox:2";

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
        "stat",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    let path = |path: &Path| path.to_string_lossy().into_owned();
    run(
        "tar",
        &["-C", &path(&root), "-cf", &path(&build.join("layer.tar")), "."],
    );
    let sum = run("sha256sum", &[&path(&build.join("layer.tar"))]);
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sum.split_whitespace().next().unwrap())]},
    });
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
