//! A whole server without a node, in a folder of its own.

use std::path::{Path, PathBuf};

use server::config::{self, Command};
use server::run::Server;

/// A folder that goes when it is dropped. On the disk that the build is on: a tmpfs would make every fsync free.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a server on what is in the folder.
pub async fn start(folder: &Path) -> Server {
    std::fs::write(folder.join("config.yaml"), "").unwrap();
    let dir = folder.display();
    let line = format!(
        "k3s server --disable-agent --config {dir}/config.yaml -d {dir} -o {dir}/k3s.yaml --token secret \
         --bind-address 127.0.0.1 --https-listen-port 0 --node-name box"
    );
    let arguments = line.split_whitespace().map(Into::into);
    let Command::Server(config) = config::parse(arguments, &config::surroundings()).unwrap() else {
        panic!("not a server's command line: {line}");
    };
    Server::start(&config).await.unwrap()
}
