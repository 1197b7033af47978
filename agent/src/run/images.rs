//! Image archives that an operator puts under `<data>/agent/images`: taken in once each, before the kubelet starts or when
//! they come.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::Value;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::runtime::{ImageError, Runtime};
use crate::sys::notice::Notice;

/// How long nothing is written to the folder before what came is taken for whole. A copy that pauses longer is an archive
/// that cannot be read, and comes again with its next change.
const QUIET: Duration = Duration::from_secs(2);

/// What of an archive shows that it is the one that was taken in.
type Print = String;

/// The folder of archives.
pub struct Images {
    runtime: Runtime,
    folder: PathBuf,
    state: PathBuf,
    notice: io::Result<Notice>,
    refused: Refused,
}

/// Archives that cannot be read, as they were then: they are not read again until they have changed.
#[derive(Default)]
struct Refused(BTreeMap<PathBuf, Print>);

impl Refused {
    fn has(&self, path: &Path, print: &Print) -> bool {
        self.0.get(path) == Some(print)
    }

    /// Notes an archive for which reading it again is no cure; what the disk refused may go better next time.
    fn note(&mut self, path: PathBuf, print: Print, error: &ImageError) {
        if matches!(error, ImageError::Archive { .. }) {
            self.0.insert(path, print);
        }
    }
}

impl Images {
    /// Takes in what is there. `state`: the folder where it is noted.
    pub async fn open(runtime: Runtime, folder: PathBuf, state: PathBuf) -> Self {
        // Watched first: what comes while it is read is not missed.
        let notice = watch(&folder);
        let mut refused = Refused::default();
        import(&runtime, &folder, &state, &mut refused).await;
        Self {
            runtime,
            folder,
            state,
            notice,
            refused,
        }
    }

    /// Takes in what comes. Runs for ever.
    pub async fn follow(mut self) {
        loop {
            let settled = match &self.notice {
                Ok(notice) => settled(notice, QUIET).await,
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            if let Err(error) = settled {
                let folder = self.folder.display();
                warn!(%folder, %error, "cannot watch for images: archives are taken in when the agent starts");
                return std::future::pending().await;
            }
            // The folder may be another by now.
            self.notice = watch(&self.folder);
            import(&self.runtime, &self.folder, &self.state, &mut self.refused).await;
        }
    }
}

fn watch(folder: &Path) -> io::Result<Notice> {
    fs::create_dir_all(folder)?;
    Notice::of(folder)
}

/// Waits for a change, and then until the folder has been left alone for so long.
async fn settled(notice: &Notice, quiet: Duration) -> io::Result<()> {
    notice.changed().await?;
    loop {
        sleep(quiet).await;
        let mut busy = false;
        while let Some(changed) = notice.changed().now_or_never() {
            changed?;
            busy = true;
        }
        if !busy {
            return Ok(());
        }
    }
}

/// Takes in every archive that is new or changed, or whose images are gone. What cannot be read is passed over: a bad
/// archive must not keep a node from starting.
async fn import(runtime: &Runtime, folder: &Path, state: &Path, refused: &mut Refused) {
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
        if refused.has(&path, &print) {
            continue;
        }
        match runtime.import(&path).await {
            Ok(images) => {
                info!(archive = name, images = images.join(","), "images imported");
                present.insert(name, (print, images));
            }
            Err(error) => {
                warn!(archive = name, error = %error, "cannot import images");
                refused.note(path, print, &error);
            }
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

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::scratch::TempDir;

    #[test]
    fn a_bad_archive_is_not_read_again_until_it_has_changed_and_a_full_disk_is_no_fault_of_its() {
        let (path, mut refused) = (PathBuf::from("a.tar"), Refused::default());
        let full = ImageError::Io {
            path: path.clone(),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        refused.note(path.clone(), "1".into(), &full);
        assert!(!refused.has(&path, &"1".into()));
        let bad = ImageError::Archive {
            path: path.clone(),
            reason: "cut".into(),
        };
        refused.note(path.clone(), "1".into(), &bad);
        assert!(refused.has(&path, &"1".into()));
        assert!(!refused.has(&path, &"2".into()));
    }

    #[tokio::test]
    async fn a_folder_is_settled_once_nothing_is_written_to_it_any_more() {
        let scratch = TempDir::new("archives");
        let folder = scratch.path();
        let notice = watch(folder).unwrap();
        // Far more than a busy machine makes the copy below stand still.
        let quiet = Duration::from_secs(1);
        assert!(
            timeout(2 * quiet, settled(&notice, quiet)).await.is_err(),
            "nothing has come"
        );
        let mut last = Instant::now();
        let copy = async {
            for size in 1..10 {
                fs::write(folder.join("a.tar"), vec![0; size]).unwrap();
                last = Instant::now();
                sleep(quiet / 10).await;
            }
        };
        let (waited, ()) = tokio::join!(settled(&notice, quiet), copy);
        waited.unwrap();
        assert!(last.elapsed() >= quiet, "{:?} after the last write", last.elapsed());
        assert!(
            timeout(2 * quiet, settled(&notice, quiet)).await.is_err(),
            "it was told already"
        );
    }
}
