//! What an administrator reads after a backup and after a restore.

use std::path::Path;

use crate::store::sql::sqlite::{Backup, Restored};

/// After a backup of the server whose state is in `data_dir`.
pub fn backed_up(made: &Backup, data_dir: &Path) -> String {
    format!(
        "{}: {} objects as of revision {}, {} bytes, read back and whole.\nTo bring the cluster back with it, its token is needed too: {}\n",
        made.path.display(),
        made.keys,
        made.revision,
        made.bytes,
        data_dir.join("server/token").display()
    )
}

/// After a restore.
pub fn restored(restored: &Restored) -> String {
    let mut text = format!(
        "restored {} objects as of revision {}; revisions go on from {}, so clients list anew\n",
        restored.keys, restored.revision, restored.goes_on
    );
    if let Some(aside) = &restored.aside {
        text.push_str(&format!("the state that was there is kept in {}\n", aside.display()));
    }
    text
}
