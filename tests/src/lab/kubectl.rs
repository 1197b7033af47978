//! The kubectl of this machine, pointed at the lab's server.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use super::{Lab, until};

/// A kubectl that forwards; it ends with this.
pub struct Forwarding {
    child: Child,
    /// Of this machine's loopback.
    pub port: u16,
    /// It ends when nobody can read what it prints.
    _printed: BufReader<ChildStdout>,
}

impl Forwarding {
    /// What the pod's web server answers, head and body; empty when nothing comes.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let mut answer = Vec::new();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        // It may be cut off in the middle.
        let _ = write!(stream, "GET {path} HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// What it says is wrong, by the line.
    pub fn said(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stderr.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        line
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs kubectl as the cluster's admin.
pub struct Kubectl {
    config: PathBuf,
}

impl Kubectl {
    /// With the kubeconfig that the server wrote, which names loopback; here it is reached by its address.
    pub fn of(lab: &Lab, server: &str) -> Self {
        Self::through(lab, server, server)
    }

    /// The same, sent to the address of another host.
    pub fn through(lab: &Lab, front: &str, server: &str) -> Self {
        let written = lab.file(server, "etc/k3s/k3s.yaml");
        until("the server has written its kubeconfig", || written.exists());
        let text = fs::read_to_string(&written).unwrap();
        assert!(text.contains("https://127.0.0.1:6443"), "{text}");
        let config = lab.folder().join(format!("kubeconfig-{front}"));
        fs::write(&config, text.replace("127.0.0.1", &lab.address(front))).unwrap();
        Self { config }
    }

    /// Starts it; what it prints is read while it runs.
    pub fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Forwards a port of this machine's to one of a pod's.
    pub fn forward(&self, pod: &str, port: u16) -> Forwarding {
        let mut child = self.start(&["port-forward", pod, &format!(":{port}")]);
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        printed.read_line(&mut line).unwrap();
        let here = line.strip_prefix("Forwarding from 127.0.0.1:");
        let here = here.and_then(|rest| rest.split_once(' '));
        let port = here.and_then(|(port, _)| port.parse().ok());
        match port {
            Some(port) => Forwarding {
                child,
                port,
                _printed: printed,
            },
            None => {
                let mut said = String::new();
                let _ = child.kill();
                let _ = child.stderr.take().unwrap().read_to_string(&mut said);
                child.wait().unwrap();
                panic!("no port is forwarded to {pod}: {line}{said}")
            }
        }
    }

    /// The line a shell would run.
    pub fn line(&self, arguments: &[&str]) -> String {
        format!("kubectl --kubeconfig {} {}", self.config.display(), arguments.join(" "))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.config).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.start(arguments);
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What it prints; else what it says is wrong.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        self.try_feed(arguments, "")
    }

    /// The same, given something to read.
    pub fn try_feed(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let output = self.output(arguments, input);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// What it prints; it must succeed.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.feed(arguments, "")
    }

    /// The same, given something to read.
    pub fn feed(&self, arguments: &[&str], input: &str) -> String {
        self.try_feed(arguments, input).unwrap_or_else(|error| {
            // What a person would ask next.
            let pods = self.try_run(&["get", "pods", "-A", "-o", "wide"]).unwrap_or_default();
            let events = self.try_run(&["get", "events", "-A"]).unwrap_or_default();
            panic!("kubectl {} failed:\n{error}\n{pods}\n{events}", arguments.join(" "))
        })
    }

    /// What it says when it must fail.
    pub fn fail(&self, arguments: &[&str], input: &str) -> String {
        match self.try_feed(arguments, input) {
            Ok(printed) => panic!("kubectl {} should have failed:\n{printed}", arguments.join(" ")),
            Err(error) => error,
        }
    }
}
