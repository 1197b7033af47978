//! The addresses on disk: one small file per address, named by it and holding the pod's uid, so that pods keep theirs over
//! a restart of the agent.
//!
//! Written with rename and without fsync: after a power cut the pods are gone too, and a stale or empty file is dropped
//! when the pods that run are known ([`Book::retain`]).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use tracing::warn;

use super::address::{Addresses, Range};

/// [`Addresses`] that survive the process.
#[derive(Debug)]
pub struct Book {
    folder: PathBuf,
    addresses: Addresses,
}

impl Book {
    /// Reads what earlier runs left in `folder` (made if missing); files that do not fit `range` are removed.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: PathBuf, range: Range) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut addresses = Addresses::new(range);
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let address = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse::<Ipv4Addr>().ok());
            let pod = fs::read_to_string(&path).unwrap_or_default();
            let kept = address.is_some_and(|address| !pod.trim().is_empty() && addresses.restore(pod.trim(), address));
            if !kept {
                warn!(file = %path.display(), "pod address does not belong to this node's range, forgetting it");
                fs::remove_file(&path)?;
            }
        }
        Ok(Self { folder, addresses })
    }

    /// The pod's address, given and noted now if it has none; `None` when the range is full.
    ///
    /// # Errors
    /// When it cannot be written down; then it is not given.
    pub fn take(&mut self, pod: &str) -> io::Result<Option<Ipv4Addr>> {
        if let Some(address) = self.addresses.of(pod) {
            return Ok(Some(address));
        }
        let Some(address) = self.addresses.take(pod) else {
            return Ok(None);
        };
        let written = self.write(pod, address);
        if written.is_err() {
            self.addresses.free(pod);
        }
        written.map(|()| Some(address))
    }

    fn write(&self, pod: &str, address: Ipv4Addr) -> io::Result<()> {
        let temporary = self.folder.join(format!(".{address}"));
        fs::write(&temporary, pod)?;
        fs::rename(temporary, self.folder.join(address.to_string()))
    }

    /// The pod's address, if it has one.
    pub fn of(&self, pod: &str) -> Option<Ipv4Addr> {
        self.addresses.of(pod)
    }

    /// Takes the pod's address back; nothing happens when it has none.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn free(&mut self, pod: &str) -> io::Result<()> {
        match self.addresses.free(pod) {
            Some(address) => fs::remove_file(self.folder.join(address.to_string())),
            None => Ok(()),
        }
    }

    /// Frees the addresses of all pods but these.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn retain(&mut self, alive: impl Fn(&str) -> bool) -> io::Result<()> {
        let gone: Vec<String> = self
            .addresses
            .pods()
            .filter(|pod| !alive(pod))
            .map(str::to_owned)
            .collect();
        gone.iter().try_for_each(|pod| self.free(pod))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::TempDir;

    #[test]
    fn addresses_outlive_the_process_and_strays_are_dropped() {
        let scratch = TempDir::new("book");
        let folder = scratch.path().to_owned();
        let range: Range = "10.42.0.0/24".parse().unwrap();
        let mut book = Book::open(folder.clone(), range).unwrap();
        let a = book.take("a").unwrap().unwrap();
        let b = book.take("b").unwrap().unwrap();
        fs::write(folder.join("10.99.0.1"), "elsewhere").unwrap();
        fs::write(folder.join("10.42.0.77"), "").unwrap();

        let mut book = Book::open(folder.clone(), range).unwrap();
        assert_eq!(
            (book.of("a"), book.of("b"), book.of("elsewhere")),
            (Some(a), Some(b), None)
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        book.retain(|pod| pod == "b").unwrap();
        assert_eq!(book.of("a"), None);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
