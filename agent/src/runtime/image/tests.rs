//! Archives good, broken and hostile. Needs root: layers have owners and device nodes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::*;

/// A folder of this test, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("amphipod-image-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let scratch = Self(path);
        prepare(&scratch.data()).unwrap();
        scratch
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn import(&self, archive: &[u8]) -> io::Result<Vec<String>> {
        let path = self.0.join("image.tar");
        fs::write(&path, archive).unwrap();
        Ok(import(&self.data(), &path)?.names)
    }

    /// The highest layer's folder of an image.
    fn top(&self, name: &str) -> PathBuf {
        let records = records(&self.data()).unwrap();
        let layers = &find(&records, name).unwrap().layers;
        self.data().join("layers").join(layers.last().unwrap()).join("fs")
    }

    fn leftovers(&self) -> usize {
        fs::read_dir(self.data().join("tmp")).unwrap().count()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn add(mut self, kind: EntryType, name: &str, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        // Written by hand: the builder refuses the names that hostile layers have.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(EntryType::Regular, name, 0o644, "", content.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn configuration(layers: &[Vec<u8>], mark: &str) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let machine = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let text = json!({"architecture": machine, "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": [format!("MARK={mark}")]},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    text.to_string().into_bytes()
}

fn docker(names: &[&str], layers: &[Vec<u8>], mark: &str) -> Vec<u8> {
    let paths: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": paths}]);
    let mut members = vec![
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
        ("config.json".to_owned(), configuration(layers, mark)),
    ];
    members.extend(paths.into_iter().zip(layers.iter().cloned()));
    archive(&members)
}

fn oci(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let mut blobs = Vec::new();
    let mut blob = |bytes: Vec<u8>, kind: &str| {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        blobs.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        descriptor
    };
    let config = blob(configuration(layers, "oci"), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let packed: Vec<Value> = layers.iter().map(|layer| blob(gzip(layer), kind)).collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": packed}).to_string();
    let mut top = blob(manifest.into_bytes(), "application/vnd.oci.image.manifest.v1+json");
    top["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [top]}).to_string();
    blobs.push(("index.json".into(), index.into_bytes()));
    blobs.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    archive(&blobs)
}

fn plain_layer() -> Vec<u8> {
    Layer::default()
        .add(EntryType::Directory, "bin/", 0o755, "", b"")
        .add(EntryType::Regular, "bin/tool", 0o4755, "", b"tool")
        .add(EntryType::Symlink, "bin/alias", 0o777, "/bin/tool", b"")
        .add(EntryType::Link, "bin/second", 0o755, "bin/tool", b"")
        .add(EntryType::Fifo, "pipe", 0o600, "", b"")
        .file("etc/gone", "x")
        .file("etc/old/a", "x")
        .end()
}

#[test]
fn docker_and_oci_archives_plain_and_compressed_give_the_same_files() {
    let layers = [plain_layer()];
    for (what, bytes) in [
        ("docker", docker(&["app:1"], &layers, "")),
        ("docker.gz", gzip(&docker(&["app:1"], &layers, ""))),
        ("oci", oci("app:1", &layers)),
        ("oci.gz", gzip(&oci("app:1", &layers))),
    ] {
        let scratch = Scratch::new(what);
        assert_eq!(scratch.import(&bytes).unwrap(), ["docker.io/library/app:1"], "{what}");
        let root = scratch.top("app:1");
        let tool = fs::metadata(root.join("bin/tool")).unwrap();
        assert_eq!(
            (tool.uid(), tool.gid(), tool.mode() & 0o7777),
            (1000, 1001, 0o4755),
            "{what}"
        );
        assert_eq!((tool.mtime(), tool.nlink()), (1_000_000, 2), "{what}");
        assert_eq!(fs::read_link(root.join("bin/alias")).unwrap(), Path::new("/bin/tool"));
        assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
        assert_eq!(records(&scratch.data()).unwrap()[0].size, 6);
        assert_eq!(scratch.leftovers(), 0, "{what}");
    }
}

#[test]
fn deleted_files_become_marks_that_overlay_understands() {
    let scratch = Scratch::new("whiteouts");
    let upper = Layer::default()
        .file("etc/.wh.gone", "")
        .file("etc/old/.wh..wh..opq", "")
        .file("etc/old/b", "y")
        .end();
    scratch.import(&docker(&["app"], &[plain_layer(), upper], "")).unwrap();
    let root = scratch.top("app");
    let mark = fs::symlink_metadata(root.join("etc/gone")).unwrap();
    assert!(mark.file_type().is_char_device() && mark.rdev() == 0);
    assert!(!root.join("etc/old/.wh..wh..opq").exists());
    let folder = File::open(root.join("etc/old")).unwrap();
    let mut value = [0_u8; 8];
    let length = crate::sys::tree::xattr(&folder, "trusted.overlay.opaque".as_ref(), &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
}

#[test]
fn a_layer_that_two_images_share_is_kept_once() {
    let scratch = Scratch::new("shared");
    let own = |text: &str| Layer::default().file("own", text).end();
    scratch
        .import(&docker(&["a"], &[plain_layer(), own("a")], "a"))
        .unwrap();
    scratch
        .import(&docker(&["b"], &[plain_layer(), own("b")], "b"))
        .unwrap();
    assert_eq!(fs::read_dir(scratch.data().join("layers")).unwrap().count(), 3);
}

#[test]
fn a_name_moves_to_the_image_that_has_it_last() {
    let scratch = Scratch::new("names");
    let layers = [plain_layer()];
    scratch.import(&docker(&["app:1", "app:2"], &layers, "old")).unwrap();
    scratch.import(&docker(&["app:2"], &layers, "new")).unwrap();
    let all = records(&scratch.data()).unwrap();
    let env = |name: &str| find(&all, name).unwrap().process.env.clone();
    assert_eq!(
        (env("app:1"), env("app:2")),
        (vec!["MARK=old".to_owned()], vec!["MARK=new".to_owned()])
    );
    let id = &find(&all, "app:2").unwrap().id;
    assert_eq!(find(&all, id).unwrap().names, ["docker.io/library/app:2"]);
    // Again the same: nothing changes.
    scratch.import(&docker(&["app:2"], &layers, "new")).unwrap();
    assert_eq!(records(&scratch.data()).unwrap().len(), 2);
}

#[test]
fn hostile_layers_write_nothing_outside_their_folder() {
    let outside = std::env::temp_dir().join(format!("amphipod-outside-{}", std::process::id()));
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let to = outside.to_str().unwrap();
    let up = format!("../../../../../../../../..{to}");
    let layers: Vec<(&str, Layer)> = vec![
        ("dots", Layer::default().file(&format!("{up}/file"), "x")),
        ("absolute", Layer::default().file(&format!("{to}/file"), "x")),
        (
            "absolute link, then through it",
            Layer::default()
                .add(EntryType::Symlink, "link", 0o777, to, b"")
                .file("link/file", "x"),
        ),
        (
            "relative link, then through it",
            Layer::default()
                .add(EntryType::Symlink, "link", 0o777, &up, b"")
                .file("link/file", "x"),
        ),
        (
            "hard link to a file outside",
            Layer::default().add(EntryType::Link, "stolen", 0o644, &format!("{up}/secret"), b""),
        ),
        (
            "a mark through a link",
            Layer::default()
                .add(EntryType::Symlink, "link", 0o777, to, b"")
                .file("link/.wh.secret", ""),
        ),
        (
            "the last part is a link",
            Layer::default()
                .add(EntryType::Symlink, "link", 0o777, &format!("{to}/secret"), b"")
                .file("link", "overwritten"),
        ),
        (
            "through /proc",
            Layer::default()
                .add(EntryType::Symlink, "link", 0o777, "/proc/self/root", b"")
                .file(&format!("link{to}/file"), "x"),
        ),
    ];
    for (what, layer) in layers {
        let scratch = Scratch::new("hostile");
        // Refused or confined: either is fine, escaping is not.
        let result = scratch.import(&docker(&["evil"], &[layer.end()], what));
        if let Err(error) = &result {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
            assert_eq!(scratch.leftovers(), 0, "{what}");
        }
        let names: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["secret"], "{what}");
        let secret = fs::metadata(outside.join("secret")).unwrap();
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret", "{what}");
        assert_eq!((secret.nlink(), secret.uid()), (1, 0), "{what}");
    }
    fs::remove_dir_all(&outside).unwrap();
}

#[test]
fn broken_archives_say_what_is_wrong_and_leave_nothing() {
    let layers = [plain_layer()];
    let good = docker(&["app"], &layers, "");
    let mut damaged = good.clone();
    let position = (0..good.len() - 512)
        .find(|&n| n % 512 == 0 && &good[n..n + 5] == b"tool\0")
        .unwrap();
    damaged[position] = b'T';
    let packed = gzip(&good);
    let other = json!([{"Config": "config.json", "RepoTags": ["x"], "Layers": ["missing.tar"]}]).to_string();
    let without = archive(&[
        ("manifest.json".into(), other.into_bytes()),
        ("config.json".into(), configuration(&layers, "")),
    ]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "neither manifest.json nor index.json"),
        ("no tar", b"not an archive at all".repeat(100), "no tar archive"),
        ("cut short", good[..good.len() - 4096].to_vec(), "ends in the middle"),
        ("cut short, compressed", packed[..packed.len() / 2].to_vec(), ""),
        ("a flipped bit", damaged, "digest differs"),
        ("a missing layer", without, "no member missing.tar"),
        ("zstd", [ZSTD.as_slice(), &[0; 600]].concat(), "zstd"),
    ];
    for (what, bytes, reason) in cases {
        let scratch = Scratch::new("broken");
        let error = scratch.import(&bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
        assert!(error.to_string().contains(reason), "{what}: {error}");
        assert_eq!(records(&scratch.data()).unwrap().len(), 0, "{what}");
        assert_eq!(scratch.leftovers(), 0, "{what}");
        assert_eq!(
            fs::read_dir(scratch.data().join("layers")).unwrap().count(),
            0,
            "{what}"
        );
    }
}

#[test]
fn an_import_that_died_half_way_is_cleared_away_and_can_be_had_again() {
    let scratch = Scratch::new("crash");
    let half = scratch.data().join("tmp/0123/fs/bin");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("half"), "written").unwrap();
    fs::write(scratch.data().join("images/broken.json"), "{\"id\":").unwrap();
    prepare(&scratch.data()).unwrap();
    assert_eq!(scratch.leftovers(), 0);
    assert_eq!(records(&scratch.data()).unwrap().len(), 0);
    scratch.import(&docker(&["app"], &[plain_layer()], "")).unwrap();
    assert_eq!(records(&scratch.data()).unwrap().len(), 1);
}

#[test]
fn a_folder_that_no_member_describes_keeps_what_it_had_below() {
    let scratch = Scratch::new("inherit");
    let lower = Layer::default()
        .add(EntryType::Directory, "home/", 0o700, "", b"")
        .end();
    let upper = Layer::default().file("home/file", "x").end();
    scratch.import(&docker(&["app"], &[lower, upper], "")).unwrap();
    let home = fs::metadata(scratch.top("app").join("home")).unwrap();
    assert_eq!((home.permissions().mode() & 0o7777, home.uid()), (0o700, 1000));
}

#[test]
fn an_image_for_another_machine_is_passed_over_if_others_are_there_and_named_if_not() {
    let (layers, strange) = (
        [plain_layer()],
        br#"{"architecture": "s390x", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#.to_vec(),
    );
    let members = |manifest: Value| {
        archive(&[
            ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
            ("config.json".to_owned(), configuration(&layers, "")),
            ("strange.json".to_owned(), strange.clone()),
            ("0/layer.tar".to_owned(), layers[0].clone()),
        ])
    };
    let foreign = json!({"Config": "strange.json", "RepoTags": ["far:1"], "Layers": []});
    let ours = json!({"Config": "config.json", "RepoTags": ["app:1"], "Layers": ["0/layer.tar"]});
    let scratch = Scratch::new("strange");
    assert_eq!(
        scratch.import(&members(json!([foreign, ours]))).unwrap(),
        ["docker.io/library/app:1"]
    );
    let again = import(&scratch.data(), &scratch.0.join("image.tar")).unwrap();
    assert_eq!(again.strange, ["docker.io/library/far:1: it is for linux/s390x"]);
    let error = scratch.import(&members(json!([foreign]))).unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}
