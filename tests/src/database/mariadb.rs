//! A MariaDB server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::process::run_unprivileged;
use super::{Certificates, Folder, Server, SqlServer, free_port};

/// Who may do everything; his password.
const SUPERUSER: (&str, &str) = ("admin", "s3cret/of@a test");

/// Who may do everything in databases, and what a server forbids to all counts for him; his password.
const PLAIN: (&str, &str) = ("plain", "plain");

/// Several at once must fit into memory.
const SMALL: &str = "--innodb-buffer-pool-size=32M";

/// The server, with TLS for those who ask for it.
#[derive(Debug)]
pub struct MariaDb {
    server: Option<Server>,
    address: Ipv4Addr,
    port: u16,
    /// Its certificates, and one for a client.
    pub certificates: Certificates,
    folder: Folder,
}

impl SqlServer for MariaDb {
    fn start_at(address: Ipv4Addr) -> Self {
        let folder = Folder::new("mariadb");
        let certificates = Certificates::new(&folder, address);
        let data = format!("--datadir={}", folder.path().join("data").display());
        // At its start a server clears away what looks like another's temporary tables.
        let temporary = format!("--tmpdir={}", folder.path().display());
        let arguments = [
            "--no-defaults",
            &data,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            SMALL,
            &temporary,
        ];
        run_unprivileged(Path::new("/usr/bin/mariadb-install-db"), &arguments);
        let (user, password) = SUPERUSER;
        let (plain, his) = PLAIN;
        let grants = format!(
            "GRANT ALL ON *.* TO '{user}'@'%' IDENTIFIED BY '{password}' WITH GRANT OPTION;\n\
             GRANT ALL ON kubernetes.* TO '{plain}'@'%' IDENTIFIED BY '{his}';\n"
        );
        folder.write(Path::new("users.sql"), &grants);
        let mut mariadb = Self {
            server: None,
            address,
            port: free_port(),
            certificates,
            folder,
        };
        mariadb.start_again();
        mariadb
    }

    fn start_again(&mut self) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let log = self.folder.path().join("log");
        let arguments = [
            "--no-defaults".to_owned(),
            format!("--datadir={}", path("data")),
            format!("--socket={}", path("socket")),
            format!("--pid-file={}", path("pid")),
            format!("--init-file={}", path("users.sql")),
            format!("--bind-address={}", self.address),
            format!("--port={}", self.port),
            SMALL.to_owned(),
            format!("--tmpdir={}", self.folder.path().display()),
            "--skip-name-resolve".to_owned(),
            format!("--ssl-ca={}", self.certificates.ca.display()),
            format!("--ssl-cert={}", self.certificates.server.display()),
            format!("--ssl-key={}", self.certificates.server_key.display()),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut server = Server::start(Path::new("/usr/sbin/mariadbd"), &arguments, &log, Signal::SIGTERM);
        server.wait_until(&log, || self.answers());
        self.server = Some(server);
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn process(&mut self) -> &mut Option<Server> {
        &mut self.server
    }

    fn endpoint(&self, database: &str, parameters: &str) -> String {
        let (user, password) = SUPERUSER;
        let (address, port) = (self.address, self.port);
        format!("mysql://{user}:{password}@tcp({address}:{port})/{database}{parameters}")
    }

    fn sql(&self, database: &str, text: &str) -> String {
        let output = self.client(database, text).output().unwrap();
        let (printed, said) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}: {said}");
        String::from_utf8(printed).unwrap()
    }

    fn cut_connections(&self, database: &str) {
        let ids = format!("SELECT id FROM information_schema.processlist WHERE db = '{database}'");
        for id in self.sql("mysql", &ids).split_whitespace() {
            // It may have ended by itself meanwhile.
            let _ = self.client("mysql", &format!("KILL {id}")).output();
        }
    }
}

impl MariaDb {
    /// Where it listens.
    pub fn listens(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    /// The endpoint of the database `kubernetes` for a user who may not write while the server is read-only.
    pub fn plain_endpoint(&self) -> String {
        let (user, password) = PLAIN;
        format!("mysql://{user}:{password}@tcp({})/kubernetes", self.listens())
    }

    /// It takes connections, and knows its users.
    fn answers(&self) -> bool {
        let output = self.client("mysql", "SELECT 1").output();
        output.is_ok_and(|output| output.status.success())
    }

    fn client(&self, database: &str, text: &str) -> Command {
        let (user, password) = (format!("--user={}", SUPERUSER.0), format!("--password={}", SUPERUSER.1));
        let socket = format!("--socket={}", self.folder.path().join("socket").display());
        let mut command = Command::new("mariadb");
        command.args([
            "--no-defaults",
            &user,
            &password,
            &socket,
            "-N",
            "-B",
            "-e",
            text,
            database,
        ]);
        command
    }
}
