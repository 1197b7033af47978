//! Hosts in namespaces, and the programs that run on them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::inhabitants;
use super::promise::until;
use crate::run;

/// What a person gives to the first server.
const TOKEN: &str = "cluster-secret";

struct Host {
    name: String,
    address: String,
    /// Sleeps in the host's namespaces, so that they outlive the programs.
    holder: Child,
    program: Option<Child>,
}

/// All hosts, their network and their files.
pub struct Lab {
    folder: PathBuf,
    hosts: Vec<Host>,
}

impl Lab {
    /// A bridge and nobody on it.
    #[expect(
        clippy::new_without_default,
        reason = "it mounts and makes links: not what a default value does"
    )]
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("cluster-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "lab", "type", "bridge"]);
        run("ip", &["addr", "add", "10.99.0.1/24", "dev", "lab"]);
        run("ip", &["link", "set", "lab", "up"]);
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let hosts = Vec::new();
        Self { folder, hosts }
    }

    /// Where the test's files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A host of this name, with the next address.
    pub fn add_host(&mut self, name: &str) {
        self.add_host_without_network(name);
        self.plug_in(name);
    }

    /// Gives a host that has none its network: address and way out.
    pub fn plug_in(&self, name: &str) {
        let (address, outside) = (self.address(name), format!("v-{name}"));
        run(
            "ip",
            &[
                "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", name,
            ],
        );
        run("ip", &["link", "set", &outside, "master", "lab", "up"]);
        let inside = |arguments: &[&str]| run("ip", &[&["-n", name], arguments].concat());
        inside(&["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        inside(&["link", "set", "eth0", "up"]);
        inside(&["route", "add", "default", "via", "10.99.0.1"]);
    }

    /// Gives a host another address in place of the one it has.
    pub fn readdress(&mut self, name: &str, address: &str) {
        let inside = |arguments: &[&str]| run("ip", &[&["-n", name], arguments].concat());
        inside(&["addr", "flush", "dev", "eth0"]);
        inside(&["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        inside(&["route", "add", "default", "via", "10.99.0.1"]);
        self.host_mut(name).address = address.to_owned();
    }

    /// A host that boots before its network: it has loopback, and the next address is kept for it.
    pub fn add_host_without_network(&mut self, name: &str) {
        let address = format!("10.99.0.{}", 10 + self.hosts.len());
        run("ip", &["netns", "add", name]);
        run("ip", &["-n", name, "link", "set", "lo", "up"]);
        for folder in ["etc", "lib", "log"] {
            fs::create_dir_all(self.folder.join(name).join(folder)).unwrap();
        }
        let holder = hold(name, &self.folder.join(name));
        let name = name.to_owned();
        self.hosts.push(Host {
            name,
            address,
            holder,
            program: None,
        });
    }

    /// A host's address.
    pub fn address(&self, name: &str) -> String {
        self.host(name).address.clone()
    }

    /// Puts an image archive where the agent of a host looks.
    pub fn put_image(&self, name: &str, archive: &Path) {
        let images = self.folder.join(name).join("lib/k3s/agent/images");
        fs::create_dir_all(&images).unwrap();
        fs::copy(archive, images.join(archive.file_name().unwrap())).unwrap();
    }

    /// A file of a host, as this test sees it; `path` is below `/etc/rancher` (`etc/…`) or `/var/lib/rancher` (`lib/…`).
    pub fn file(&self, name: &str, path: &str) -> PathBuf {
        self.folder.join(name).join(path)
    }

    /// An address of the hosts' network that no host has.
    pub const NOBODY: &str = "10.99.0.254";

    /// Lets a host know a name by these addresses.
    pub fn name(&self, host: &str, name: &str, addresses: &[&str]) {
        let mut hosts = OpenOptions::new().append(true).open(self.file(host, "hosts")).unwrap();
        for address in addresses {
            writeln!(hosts, "{address} {name}").unwrap();
        }
    }

    /// Starts `k3s server`.
    pub fn start_server(&mut self, name: &str) {
        self.start_server_with(name, &[]);
    }

    /// Starts `k3s server` with further flags.
    pub fn start_server_with(&mut self, name: &str, flags: &[&str]) {
        let address = self.address(name);
        let own = ["server", "--node-name", name, "--node-ip", &address, "--token", TOKEN];
        self.start(name, &binary("k3s"), &[&own, flags].concat());
    }

    /// Starts `k3s-agent`, given what a person would give it.
    pub fn start_agent(&mut self, name: &str, server: &str) {
        self.start_agent_through(name, &self.address(server), server);
    }

    /// The same, to join at another host, by its name or address; the token is that of `server`.
    pub fn start_agent_through(&mut self, name: &str, front: &str, server: &str) {
        let url = format!("https://{front}:6443");
        let token = fs::read_to_string(self.node_token(server)).unwrap();
        let address = self.address(name);
        self.start(
            name,
            &binary("k3s-agent"),
            &[
                "--server",
                &url,
                "--token",
                token.trim(),
                "--node-name",
                name,
                "--node-ip",
                &address,
            ],
        );
    }

    /// Starts an agent by the command that a server printed, with the token where it says the token is.
    pub fn start_agent_as_told(&mut self, name: &str, server: &str) {
        let mut told = String::new();
        until("the server has said how to join", || {
            let log = self.log(server);
            let line = log.lines().find_map(|line| line.strip_prefix("  join        "));
            let line = line.and_then(|line| line.split("    (as root").next());
            told = line.unwrap_or_default().to_owned();
            !told.is_empty()
        });
        let token = fs::read_to_string(self.node_token(server)).unwrap();
        let told = told.replace("<the text of /var/lib/rancher/k3s/server/node-token>", token.trim());
        let (program, arguments) = told.split_once(' ').unwrap();
        let address = self.address(name);
        let mut arguments: Vec<&str> = arguments.split(' ').collect();
        // As the hosts of a lab have no names of their own.
        arguments.extend(["--node-name", name, "--node-ip", &address]);
        self.start(name, &binary(program), &arguments);
    }

    /// Starts `k3s-agent` without a word on its command line, in this environment.
    pub fn start_agent_in(&mut self, name: &str, environment: &[(&str, &str)]) {
        self.start_in(name, &binary("k3s-agent"), &[], environment);
    }

    /// Where a server's API is.
    pub fn url(&self, server: &str) -> String {
        format!("https://{}:6443", self.address(server))
    }

    /// The file of a server with the token that joins machines; it is there when this returns.
    pub fn node_token(&self, server: &str) -> PathBuf {
        let token = self.file(server, "lib/k3s/server/node-token");
        until("the server has written its node token", || token.exists());
        token
    }

    fn start(&mut self, name: &str, program: &Path, arguments: &[&str]) {
        self.start_in(name, program, arguments, &[]);
    }

    fn start_in(&mut self, name: &str, program: &Path, arguments: &[&str], environment: &[(&str, &str)]) {
        let host = self.folder.join(name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(host.join("log.txt"))
            .unwrap();
        let mut command = Command::new("nsenter");
        command.args(self.inside(name));
        command.arg(program).args(arguments).envs(environment.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap();
        self.host_mut(name).program = Some(child);
    }

    /// What `nsenter` is told to run a command on a host.
    pub fn inside(&self, name: &str) -> Vec<String> {
        let holder = self.host(name).holder.id().to_string();
        ["-t", &holder, "--mount", "--net", "--"]
            .map(ToOwned::to_owned)
            .to_vec()
    }

    /// Listens on a host's address, on some port.
    pub fn listen(&self, name: &str) -> TcpListener {
        let (network, address) = (format!("/run/netns/{name}"), self.address(name));
        // A socket stays in the network in which it was made, a thread can go there alone.
        let listening = std::thread::spawn(move || {
            setns(fs::File::open(network).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind((address.as_str(), 0)).unwrap()
        });
        listening.join().unwrap()
    }

    /// The process id of a host's program.
    pub fn pid(&self, name: &str) -> u32 {
        self.host(name).program.as_ref().unwrap().id()
    }

    /// Ends a host's program, by a signal that it cannot refuse if `at_once`.
    pub fn end(&mut self, name: &str, at_once: bool) {
        let signal = if at_once { Signal::SIGKILL } else { Signal::SIGTERM };
        self.end_by(name, signal, at_once);
    }

    /// Asks a host's program to end, and does not wait for that.
    pub fn ask_to_end(&self, name: &str) {
        self.signal(name, Signal::SIGTERM);
    }

    /// Waits for the end of what was asked to; it must be a clean one.
    pub fn see_end(&mut self, name: &str) {
        let mut program = self.host_mut(name).program.take().unwrap();
        let status = program.wait().unwrap();
        assert!(status.success(), "{name} did not stop cleanly: {status}");
    }

    /// Ends it as Ctrl-C does.
    pub fn interrupt(&mut self, name: &str) {
        self.end_by(name, Signal::SIGINT, false);
    }

    /// Sends a host's program a signal; it is there when this returns.
    pub(super) fn signal(&self, name: &str, signal: Signal) {
        let pid = i32::try_from(self.pid(name)).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    fn end_by(&mut self, name: &str, signal: Signal, at_once: bool) {
        if self.host(name).program.is_none() {
            return;
        }
        self.signal(name, signal);
        let mut program = self.host_mut(name).program.take().unwrap();
        let status = program.wait().unwrap();
        assert!(at_once || status.success(), "{name} did not stop cleanly: {status}");
    }

    /// Starts an agent again with what it has on disk.
    pub fn restart_agent(&mut self, name: &str) {
        self.start_agent(name, "server");
    }

    /// Starts a program of this machine on a host.
    pub fn start_program(&mut self, name: &str, program: &Path, arguments: &[&str]) {
        self.start(name, program, arguments);
    }

    /// Whether a host's program has been started and runs.
    pub fn runs(&self, name: &str) -> bool {
        self.host(name).program.as_ref().is_some_and(|program| {
            let pid = Pid::from_raw(i32::try_from(program.id()).unwrap());
            // Its end is left for who waits for it.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            waitid(Id::Pid(pid), flags) == Ok(WaitStatus::StillAlive)
        })
    }

    /// The end of what a host's program has written.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name).join("log.txt")).unwrap_or_default()
    }

    /// Ends everything.
    pub fn stop(&mut self) {
        let names: Vec<String> = self.hosts.iter().map(|host| host.name.clone()).collect();
        for name in names {
            self.end(&name, false);
        }
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    fn host_mut(&mut self, name: &str) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.name == name).unwrap()
    }
}

impl Drop for Lab {
    /// What a failing test needs to be understood is printed; no process and no file stays.
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if let Some(mut program) = host.program.take() {
                let _ = program.kill();
                let _ = program.wait();
            }
        }
        if std::thread::panicking() {
            for host in &self.hosts {
                let log = self.log(&host.name);
                let lines: Vec<&str> = log.lines().collect();
                let last = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default();
                eprintln!("---- end of the log of {}\n{}", host.name, last.join("\n"));
            }
        }
        // Pods outlive their agent.
        for host in &self.hosts {
            inhabitants::end(host.holder.id());
        }
        for host in &mut self.hosts {
            let _ = host.holder.kill();
            let _ = host.holder.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Makes a host's mount namespace in its network namespace, and waits until it is furnished.
fn hold(name: &str, folder: &Path) -> Child {
    // Not `ip netns exec`: that hides the cgroups under a fresh /sys.
    let script = r#"
        mount -t tmpfs tmpfs /run
        mkdir -p /etc/rancher /var/lib/rancher
        mount --bind "$1/etc" /etc/rancher
        mount --bind "$1/lib" /var/lib/rancher
        mount --bind "$1/log" /var/log
        echo "127.0.0.1 localhost" >"$1/hosts"
        mount --bind "$1/hosts" /etc/hosts
        touch "$1/furnished"
        exec sleep 100000
    "#;
    let network = format!("--net=/run/netns/{name}");
    let mut command = Command::new("nsenter");
    command.args([&network, "--", "unshare", "--mount", "--", "sh", "-ec", script, "sh"]);
    let holder = command.arg(folder).stdin(Stdio::null()).spawn().unwrap();
    until("the host is furnished", || folder.join("furnished").exists());
    holder
}

/// A built program, beside the folder this test was built into.
pub fn binary(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let built = this.parent().unwrap().parent().unwrap().join(name);
    assert!(built.exists(), "{} is missing: cargo build --bins", built.display());
    built
}
