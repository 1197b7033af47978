//! What runs in processes of its own: a pod's shim, and the import of images.
//!
//! The binary re-executed, dispatched before any thread exists: forking is safe here and nowhere else. Nothing in here
//! uses tokio. Errors go to standard error as one line; the exit code tells their kind.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use super::image;

mod child;
mod log;
mod pod;
mod rootfs;
mod serve;
mod task;

/// The words were not understood.
const USAGE: i32 = 64;
/// The input is at fault: trying again cannot help.
pub(super) const BAD_INPUT: i32 = 65;
/// The node is at fault.
const FAILED: i32 = 1;

/// Runs what `k3s-agent shim …` names; never returns. `args`: the words after `shim`.
pub fn main(args: Vec<OsString>) -> ! {
    let result = match args.as_slice() {
        [verb, data, archive] if verb == "import" => import(Path::new(data), Path::new(archive)),
        [verb, folder] if verb == "pod" => pod::main(Path::new(folder)),
        _ => std::process::exit(USAGE),
    };
    std::process::exit(match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            if error.kind() == io::ErrorKind::InvalidData {
                BAD_INPUT
            } else {
                FAILED
            }
        }
    })
}

/// Prints the names of the images taken in, one a line; on standard error those passed over.
fn import(data: &Path, archive: &Path) -> io::Result<()> {
    let imported = image::import(data, archive)?;
    let mut out = io::stdout().lock();
    for name in imported.names {
        writeln!(out, "{name}")?;
    }
    for line in imported.strange {
        eprintln!("{line}");
    }
    Ok(())
}
