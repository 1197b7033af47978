//! Image archives that an operator puts under `<data>/agent/images`: taken in before the kubelet starts, once each.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tracing::{info, warn};

use crate::runtime::Runtime;

/// What of an archive shows that it is the one that was taken in.
type Print = String;

/// Takes in every archive that is new or changed, or whose images are gone. What cannot be read is passed over: a bad
/// archive must not keep a node from starting.
pub async fn import(runtime: &Runtime, folder: &Path, state: &Path) {
    let record = state.join("imported-images.json");
    let known = read(&fs::read(&record).unwrap_or_default());
    let mut present = BTreeMap::new();
    for (path, print) in archives(folder) {
        let name = path.display().to_string();
        let before = known.get(&name).filter(|(known, _)| *known == print);
        if let Some((_, images)) = before
            && all_there(runtime, images).await
        {
            present.insert(name, (print, images.clone()));
            continue;
        }
        match runtime.import(&path).await {
            Ok(images) => {
                info!(archive = name, images = images.join(","), "images imported");
                present.insert(name, (print, images));
            }
            Err(error) => warn!(archive = name, error = %error, "cannot import images"),
        }
    }
    if present != known
        && let Err(error) = crate::join::replace(&record, write(&present).as_bytes(), 0o600)
    {
        warn!(error = %error, "cannot keep the list of imported images; they are imported again next time");
    }
}

async fn all_there(runtime: &Runtime, images: &[String]) -> bool {
    for image in images {
        if runtime.resolve(image).await.is_none() {
            return false;
        }
    }
    true
}

/// Sorted by name. K3s also takes in .bz2, .lz4 and .zst, which the runtime does not read: they are named in the log.
fn archives(folder: &Path) -> Vec<(PathBuf, Print)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let (path, metadata) = (entry.path(), fs::metadata(entry.path()).ok()?);
            let print = format!("{}-{}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec());
            metadata.is_file().then_some((path, print))
        })
        .collect();
    all.retain(|(path, _)| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let ours = [".tar", ".tar.gz", ".tgz"].iter().any(|end| name.ends_with(end));
        if !ours && !name.starts_with('.') && !name.ends_with(".txt") {
            warn!(archive = %path.display(), "not an archive this agent reads: use .tar or .tar.gz");
        }
        ours
    });
    all.sort();
    all
}

fn read(bytes: &[u8]) -> BTreeMap<String, (Print, Vec<String>)> {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn write(record: &BTreeMap<String, (Print, Vec<String>)>) -> String {
    serde_json::to_value(record)
        .as_ref()
        .map(Value::to_string)
        .unwrap_or_default()
}
