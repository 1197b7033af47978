//! A cluster of etcd of a test's own: on loopback, on ports that the kernel chose, with its data in a folder that goes
//! with it. Its members can be killed, paused and started again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use super::process::free_ports;

/// For a member to serve after its start.
const START: Duration = Duration::from_secs(30);
/// For each attempt at a whole start: a port may be taken by somebody else before etcd has it.
const ATTEMPTS: u32 = 5;
/// Before a member is started once more on a port that somebody has for a moment.
const AGAIN: Duration = Duration::from_millis(500);

/// What etcd writes at its end then.
const TAKEN: &str = "address already in use";

/// How its clients' side is to be.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Form {
    /// Where clients reach its members; loopback unless said.
    pub address: Option<Ipv4Addr>,
    /// Of how many members; none is one.
    pub members: usize,
    /// Clients come over TLS and show a certificate.
    pub tls: bool,
    /// Each member is another user's, so that it can be cut off from the others. Root only.
    pub apart: bool,
    /// Bytes that its data may take; etcd's own limit unless said.
    pub quota: Option<u32>,
}

/// The user of the first member that is apart. Nobody's: it needs no name.
const FIRST_USER: usize = 60_201;

/// A running cluster. Its end ends the members and removes their data.
#[derive(Debug)]
pub struct Etcd {
    folder: PathBuf,
    members: Vec<Member>,
    form: Form,
}

#[derive(Debug)]
struct Member {
    client: u16,
    peer: u16,
    /// `None`: killed.
    process: Option<Child>,
}

/// The files a client needs for TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientFiles {
    /// Whom to trust.
    pub ca: PathBuf,
    /// Who we are.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Etcd {
    /// One member, plain HTTP.
    ///
    /// # Errors
    /// When etcd is not there or does not serve: what it wrote.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_as(Form::default())
    }

    /// A cluster of the form wanted, once all of it serves.
    ///
    /// # Errors
    /// When etcd is not there or does not serve: what it wrote.
    pub fn start_as(form: Form) -> anyhow::Result<Self> {
        let mut last = anyhow!("never tried");
        for _ in 0..ATTEMPTS {
            match Self::try_start(form) {
                Ok(etcd) => return Ok(etcd),
                Err(error) => last = error,
            }
        }
        Err(last.context("etcd does not start (Debian: apt-get install etcd-server)"))
    }

    fn try_start(form: Form) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("etcd-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let ports = free_ports(form.members.max(1) * 2);
        let members = ports
            .chunks_exact(2)
            .filter_map(|pair| {
                let [client, peer] = *pair else { return None };
                Some(Member {
                    client,
                    peer,
                    process: None,
                })
            })
            .collect();
        let mut etcd = Self { folder, members, form };
        if form.tls {
            etcd.make_certificates()?;
        }
        for number in 0..etcd.members.len() {
            etcd.launch(number)?;
        }
        for number in 0..etcd.members.len() {
            etcd.wait(number)?;
        }
        Ok(etcd)
    }

    /// What `--datastore-endpoint` takes: all members.
    pub fn endpoint(&self) -> String {
        let all: Vec<String> = self.members.iter().map(|member| self.url(member.client)).collect();
        all.join(",")
    }

    /// How many members there are.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The address of a member's client port.
    pub fn address(&self, number: usize) -> SocketAddr {
        let port = self.members.get(number).map_or(0, |member| member.client);
        SocketAddr::from((self.host(), port))
    }

    /// The address of the port on which the other members reach it.
    pub fn peer_address(&self, number: usize) -> SocketAddr {
        let port = self.members.get(number).map_or(0, |member| member.peer);
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// The client's files, if it is to use TLS.
    pub fn files(&self) -> Option<ClientFiles> {
        self.form.tls.then(|| ClientFiles {
            ca: self.folder.join("ca.crt"),
            cert: self.folder.join("client.crt"),
            key: self.folder.join("client.key"),
        })
    }

    /// Ends a member as a power cut would: SIGKILL.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let member = self.members.get_mut(number).context("no such member")?;
        let mut process = member.process.take().context("not running")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Starts a killed member, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_again(&mut self, number: usize) -> anyhow::Result<()> {
        self.launch(number)?;
        self.serve(number)
    }

    /// The same for all of them; none serves before most do.
    ///
    /// # Errors
    /// When one does not.
    pub fn start_all_again(&mut self) -> anyhow::Result<()> {
        (0..self.size()).try_for_each(|number| self.launch(number))?;
        (0..self.size()).try_for_each(|number| self.serve(number))
    }

    /// What a member and the others send each other gets lost, and nobody is told; its clients reach it. For a cluster that
    /// is `apart`, in a network namespace of the test's own.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn cut_off(&self, number: usize) -> anyhow::Result<()> {
        let member = self.members.get(number).context("no such member")?;
        let ports: Vec<String> = self.members.iter().map(|member| member.peer.to_string()).collect();
        let (user, ports, own) = (FIRST_USER + number, ports.join(", "), member.peer);
        let rules = format!(
            "table ip etcd {{\n chain out {{\n type filter hook output priority 0;\n meta skuid {user} tcp dport {{ {ports} }} \
             drop\n tcp dport {own} drop\n tcp sport {own} drop\n }}\n}}\n"
        );
        let file = self.folder.join("rules");
        fs::write(&file, rules)?;
        let done = Command::new("nft").arg("-f").arg(&file).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// All members reach each other again.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn mend(&self) -> anyhow::Result<()> {
        let done = Command::new("nft").args(["delete", "table", "ip", "etcd"]).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// Keeps a copy of what a killed member has on its disk.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn keep(&self, number: usize) -> anyhow::Result<()> {
        self.copy(&format!("m{number}"), &format!("kept{number}"))
    }

    /// Puts the copy back: the member forgets what it acknowledged since.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn put_back(&self, number: usize) -> anyhow::Result<()> {
        fs::remove_dir_all(self.folder.join(format!("m{number}")))?;
        self.copy(&format!("kept{number}"), &format!("m{number}"))
    }

    fn copy(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let done = Command::new("cp")
            .args(["-a", "--"])
            .args([self.folder.join(from), self.folder.join(to)])
            .status()?;
        ensure!(done.success(), "cp {from} {to} failed");
        Ok(())
    }

    /// Stops a member where it is; its connections stay open and say nothing.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn pause(&self, number: usize) -> anyhow::Result<()> {
        self.signal(number, "-STOP")
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn resume(&self, number: usize) -> anyhow::Result<()> {
        self.signal(number, "-CONT")
    }

    fn signal(&self, number: usize, signal: &str) -> anyhow::Result<()> {
        let member = self.members.get(number).context("no such member")?;
        let process = member.process.as_ref().context("not running")?;
        let done = Command::new("kill")
            .arg(signal)
            .arg(process.id().to_string())
            .status()?;
        ensure!(done.success(), "kill {signal} failed");
        Ok(())
    }

    /// Which member leads; waits for an election if there is one.
    ///
    /// # Errors
    /// When none does within half a minute, or the clients' side is TLS.
    pub fn leader(&self) -> anyhow::Result<usize> {
        let deadline = Instant::now() + START;
        let mut mute = None;
        while Instant::now() < deadline {
            for (number, member) in self.members.iter().enumerate() {
                if member.process.is_none() {
                    continue;
                }
                let status = match self.ask(number, "maintenance/status", &json!({})) {
                    Ok(status) => status,
                    Err(error) => {
                        mute = Some(format!("{error}; {}", end_of(&self.log(number))));
                        continue;
                    }
                };
                let leader = status.get("leader").and_then(Value::as_str).unwrap_or("0");
                let own = status.pointer("/header/member_id").and_then(Value::as_str);
                if leader != "0" && own == Some(leader) {
                    return Ok(number);
                }
            }
            sleep(Duration::from_millis(50));
        }
        bail!("no member leads: {}", mute.unwrap_or_default())
    }

    /// Adds the user `root` with this password, and switches authentication on. Over plain HTTP only.
    ///
    /// # Errors
    /// What etcd said.
    pub fn enable_auth(&self, password: &str) -> anyhow::Result<()> {
        self.ask(0, "auth/user/add", &json!({ "name": "root", "password": password }))?;
        self.ask(0, "auth/user/grant", &json!({ "user": "root", "role": "root" }))?;
        self.ask(0, "auth/enable", &json!({}))?;
        Ok(())
    }

    /// Asks a member through its JSON gateway. Over plain HTTP only.
    ///
    /// # Errors
    /// What etcd said.
    pub fn ask(&self, number: usize, what: &str, request: &Value) -> anyhow::Result<Value> {
        ensure!(!self.form.tls, "the gateway is asked over plain HTTP only");
        let mut socket = TcpStream::connect_timeout(&self.address(number), START)?;
        socket.set_read_timeout(Some(START))?;
        let body = request.to_string();
        let head = format!("POST /v3/{what} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes())?;
        socket.write_all(body.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.contains(" 200 "), "{what}: {head}: {body}");
        Ok(serde_json::from_str(body.trim())?)
    }

    fn url(&self, port: u16) -> String {
        let scheme = if self.form.tls { "https" } else { "http" };
        format!("{scheme}://{}:{port}", self.host())
    }

    fn host(&self) -> Ipv4Addr {
        self.form.address.unwrap_or(Ipv4Addr::LOCALHOST)
    }

    fn launch(&mut self, number: usize) -> anyhow::Result<()> {
        let cluster: Vec<String> = (self.members.iter().enumerate())
            .map(|(number, member)| format!("m{number}=http://127.0.0.1:{}", member.peer))
            .collect();
        let member = self.members.get(number).context("no such member")?;
        let (client, peer) = (self.url(member.client), format!("http://127.0.0.1:{}", member.peer));
        let log = fs::File::options().create(true).append(true).open(self.log(number))?;
        let mut command = self.command(number)?;
        command
            .args(["--name", &format!("m{number}")])
            .arg("--data-dir")
            .arg(self.folder.join(format!("m{number}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(quota) = self.form.quota {
            command.args(["--quota-backend-bytes", &quota.to_string()]);
        }
        if self.form.tls {
            let file = |name: &str| self.folder.join(name);
            command
                .arg("--cert-file")
                .arg(file("server.crt"))
                .arg("--key-file")
                .arg(file("server.key"))
                .arg("--trusted-ca-file")
                .arg(file("ca.crt"))
                .arg("--client-cert-auth");
        }
        let process = command.spawn().context("cannot run etcd")?;
        if let Some(member) = self.members.get_mut(number) {
            member.process = Some(process);
        }
        Ok(())
    }

    /// Of a member's program, as its user.
    fn command(&self, number: usize) -> anyhow::Result<Command> {
        if !self.form.apart {
            return Ok(Command::new("etcd"));
        }
        let (user, data) = (FIRST_USER + number, self.folder.join(format!("m{number}")));
        if !data.exists() {
            fs::create_dir(&data)?;
            fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
            chown(&data, Some(u32::try_from(user)?), None)?;
        }
        let mut command = Command::new("setpriv");
        let (user, group) = (format!("--reuid={user}"), format!("--regid={FIRST_USER}"));
        command.args([&user, &group, "--clear-groups", "--", "etcd"]);
        Ok(command)
    }

    /// Until a member that was started again takes connections. Its ports are those that its clients and the other members know:
    /// while one is taken it is launched anew.
    fn serve(&mut self, number: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let Err(error) = self.wait(number) else {
                return Ok(());
            };
            if !format!("{error}").contains(TAKEN) || Instant::now() >= deadline {
                return Err(error);
            }
            sleep(AGAIN);
            self.launch(number)?;
        }
    }

    /// Until a member takes connections. It does so once it has joined its cluster.
    fn wait(&mut self, number: usize) -> anyhow::Result<()> {
        let (address, log) = (self.address(number), self.log(number));
        let member = self.members.get_mut(number).context("no such member")?;
        let process = member.process.as_mut().context("not running")?;
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if let Some(status) = process.try_wait()? {
                bail!("etcd ended ({status}): {}", end_of(&log));
            }
            if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("etcd does not listen: {}", end_of(&log))
    }

    fn log(&self, number: usize) -> PathBuf {
        self.folder.join(format!("m{number}.log"))
    }

    fn make_certificates(&self) -> anyhow::Result<()> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(self.folder.join("ca.crt"), ca.pem())?;
        for name in ["server", "client"] {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
            let certificate = params.signed_by(&key, &ca)?;
            fs::write(self.folder.join(format!("{name}.crt")), certificate.pem())?;
            fs::write(self.folder.join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                // Gone already: as good.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(10)..)
        .unwrap_or_default()
        .join("\n")
}
