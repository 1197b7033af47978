//! What SQLite's errors mean to whoever opens, reads or writes the file.

use std::path::Path;

use rusqlite::{ErrorCode, ffi};

use super::super::super::StoreError;
use super::OpenError;

/// What went wrong while a file was opened, or read for the first time.
pub fn open_error(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse { path },
        Some(ErrorCode::DiskFull) => OpenError::File {
            path,
            source: std::io::ErrorKind::StorageFull.into(),
        },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Damaged { path, detail },
        // No such table or column: its schema is gone. Or the card does not give what was written.
        Some(ErrorCode::Unknown) => OpenError::Damaged { path, detail },
        Some(ErrorCode::SystemIoFailure) if is_unreadable(error) => OpenError::Damaged { path, detail },
        Some(_) => OpenError::Sql { path, detail },
        // A column holds something of another type.
        None => OpenError::Damaged { path, detail },
    }
}

fn is_unreadable(error: &rusqlite::Error) -> bool {
    let codes = [
        ffi::SQLITE_IOERR_READ,
        ffi::SQLITE_IOERR_SHORT_READ,
        ffi::SQLITE_IOERR_CORRUPTFS,
    ];
    let code = error.sqlite_error().map(|error| error.extended_code);
    code.is_some_and(|code| codes.contains(&code))
}

/// What writers and readers of the open file are told.
pub fn store_error(error: &rusqlite::Error) -> StoreError {
    let detail = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => return StoreError::Full,
        Some(ErrorCode::ReadOnly) => {
            "its file system is read-only, as it becomes when a card or disk is worn out: look at the kernel's log"
        }
        Some(ErrorCode::SystemIoFailure) => {
            "the disk refuses to read or write, as it does when it is worn out or has become read-only: look at the kernel's log"
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            "its file is damaged: start the server anew, which repairs what can be repaired"
        }
        _ => return StoreError::Unavailable(error.to_string()),
    };
    StoreError::Unavailable(format!("{detail} ({error})"))
}
