//! A PostgreSQL server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::process::run_unprivileged;
use super::{Certificates, Folder, Server, SqlServer, free_port};

/// Who may do everything; his password.
const SUPERUSER: (&str, &str) = ("admin", "s3cret/of a test");

/// The server, with TLS and passwords as in earnest (SCRAM).
#[derive(Debug)]
pub struct Postgres {
    server: Option<Server>,
    address: Ipv4Addr,
    port: u16,
    /// Its certificates, and one for a client.
    pub certificates: Certificates,
    folder: Folder,
}

impl SqlServer for Postgres {
    fn start_at(address: Ipv4Addr) -> Self {
        let folder = Folder::new("postgres");
        let certificates = Certificates::new(&folder, address);
        let password = folder.write(Path::new("password"), SUPERUSER.1);
        let data = folder.path().join("data");
        let arguments = [
            "--pgdata",
            data.to_str().unwrap(),
            "--username",
            SUPERUSER.0,
            "--pwfile",
            password.to_str().unwrap(),
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ];
        run_unprivileged(&program("initdb"), &arguments);
        let anybody = "host all,replication all all scram-sha-256\nlocal all all scram-sha-256\n";
        folder.write(Path::new("data/pg_hba.conf"), anybody);
        let mut postgres = Self {
            server: None,
            address,
            port: free_port(),
            certificates,
            folder,
        };
        postgres.start_again();
        postgres
    }

    fn start_again(&mut self) {
        // What was killed left this.
        let _ = std::fs::remove_file(self.folder.path().join("data/postmaster.pid"));
        let (data, log) = (self.folder.path().join("data"), self.folder.path().join("log"));
        let setting = |name: &str, value: &str| format!("{name}={value}");
        let settings = [
            setting("listen_addresses", &self.address.to_string()),
            setting("port", &self.port.to_string()),
            setting("unix_socket_directories", self.folder.path().to_str().unwrap()),
            setting("ssl", "on"),
            setting("ssl_ca_file", self.certificates.ca.to_str().unwrap()),
            setting("ssl_cert_file", self.certificates.server.to_str().unwrap()),
            setting("ssl_key_file", self.certificates.server_key.to_str().unwrap()),
        ];
        let mut arguments = vec!["-D", data.to_str().unwrap()];
        for setting in &settings {
            arguments.extend(["-c", setting]);
        }
        let mut server = Server::start(&program("postgres"), &arguments, &log, Signal::SIGQUIT);
        // It listens long before it has recovered from what was done to it.
        let mut asking = Command::new(program("pg_isready"));
        asking.args(["-q", "-h", &self.address.to_string(), "-p", &self.port.to_string()]);
        server.wait_until(&log, || asking.status().is_ok_and(|status| status.success()));
        self.server = Some(server);
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn process(&mut self) -> &mut Option<Server> {
        &mut self.server
    }

    fn endpoint(&self, database: &str, parameters: &str) -> String {
        let (user, password) = (SUPERUSER.0, "s3cret%2Fof%20a%20test");
        let (address, port, database) = (self.address, self.port, database.replace(' ', "%20"));
        format!("postgres://{user}:{password}@{address}:{port}/{database}{parameters}")
    }

    fn sql(&self, database: &str, text: &str) -> String {
        let endpoint = self.endpoint(database, "");
        crate::run("psql", &[&endpoint, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text])
    }

    fn cut_connections(&self, database: &str) {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE pid <> pg_backend_pid() AND application_name = 'k3s'";
        self.sql(database, others);
    }
}

impl Postgres {
    /// An asynchronous standby of it, which follows through `way` (streaming replication) and answers what only reads.
    pub fn standby(&self, way: SocketAddr) -> Self {
        let folder = Folder::new("standby");
        let (data, source) = (folder.path().join("data"), self.endpoint_at(way, "postgres"));
        let arguments = [
            "-D",
            data.to_str().unwrap(),
            "-d",
            &source,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        ];
        run_unprivileged(&program("pg_basebackup"), &arguments);
        let mut standby = Self {
            server: None,
            address: self.address,
            port: free_port(),
            certificates: self.certificates.clone(),
            folder,
        };
        standby.start_again();
        standby
    }

    /// Makes a standby take writes, on a timeline of its own.
    pub fn promote(&self) {
        let promoted = self.sql("postgres", "SELECT pg_promote()");
        assert_eq!(promoted.trim(), "t");
    }

    /// Where it listens.
    pub fn listens(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    /// The endpoint of a database, reached at another address than its own.
    pub fn endpoint_at(&self, address: SocketAddr, database: &str) -> String {
        let own = format!("@{}/", self.listens());
        self.endpoint(database, "").replace(&own, &format!("@{address}/"))
    }
}

/// Debian keeps each version's programs in a folder of its own.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").map(|found| found.filter_map(Result::ok).collect());
    let versions: Vec<std::fs::DirEntry> = versions.unwrap_or_default();
    let mut found: Vec<PathBuf> = versions
        .iter()
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| panic!("{name} is missing: install the package postgresql (tests/run does)"))
}
