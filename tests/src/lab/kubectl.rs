//! The kubectl of this machine, pointed at the lab's server.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use super::{Lab, until};

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
