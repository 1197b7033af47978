//! A whole server without a node, in a folder of its own.

#[path = "folder.rs"]
mod folder;

use std::path::Path;

use server::config::{self, Command};
use server::run::Server;

pub use self::folder::Folder;

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
