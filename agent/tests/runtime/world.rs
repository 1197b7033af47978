//! What every test stands on: a runtime of its own, an image around busybox, and a look at the end for what is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::runtime::{ContainerSpec, ContainerState, ExecSpec, Runtime, RuntimeConfig, SandboxSpec, Status};
use serde_json::json;
use tokio::io::AsyncReadExt;

pub const IMAGE: &str = "localhost/box:1";

pub struct World {
    name: String,
    pub root: PathBuf,
    pub runtime: Runtime,
    finished: bool,
}

/// A test that fails leaves nothing either.
impl Drop for World {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let (config, root) = (Self::config(&self.name, &self.root), self.root.clone());
        let cleared = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            tokio.block_on(async {
                Runtime::open(config)
                    .await
                    .unwrap()
                    .remove_sandbox("uid-1")
                    .await
                    .unwrap()
            });
        });
        let _ = cleared.join();
        for folder in self.cgroups() {
            let _ = fs::remove_dir(folder.join("shims"));
            let _ = fs::remove_dir(folder);
        }
        let _ = fs::remove_dir_all(root);
    }
}

impl World {
    pub async fn new(name: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes namespaces: run it as root"
        );
        let name = format!("amphipod-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(&name);
        fs::create_dir_all(&root).unwrap();
        let runtime = Runtime::open(Self::config(&name, &root)).await.unwrap();
        let world = Self {
            name,
            root,
            runtime,
            finished: false,
        };
        let archive = world.root.join("box.tar");
        fs::write(&archive, busybox_image()).unwrap();
        assert_eq!(world.runtime.import(&archive).await.unwrap(), [IMAGE]);
        world
    }

    pub fn config(name: &str, root: &Path) -> RuntimeConfig {
        RuntimeConfig {
            shim: env!("CARGO_BIN_EXE_k3s-agent").into(),
            cgroup_parent: name.into(),
            ..RuntimeConfig::new(root.join("data"), root.join("run"))
        }
    }

    /// What a restart of the agent does.
    pub async fn restart(&mut self) {
        self.runtime = Runtime::open(Self::config(&self.name, &self.root)).await.unwrap();
    }

    pub fn sandbox(&self) -> SandboxSpec {
        SandboxSpec {
            pod_uid: "uid-1".into(),
            namespace: "default".into(),
            name: "web".into(),
            hostname: "web-0".into(),
            log_dir: self.root.join("logs"),
            ..SandboxSpec::default()
        }
    }

    pub fn container(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.into(),
            image: IMAGE.into(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: self.root.join("logs").join(name).join("0.log"),
            ..ContainerSpec::default()
        }
    }

    pub async fn start(&self, spec: &ContainerSpec) {
        self.runtime.start_container("uid-1", spec).await.unwrap();
    }

    pub async fn state(&self, name: &str) -> ContainerState {
        let pod = self.runtime.pod("uid-1").await.unwrap().unwrap();
        pod.container(name).unwrap().clone()
    }

    pub async fn exited(&self, name: &str) -> ContainerState {
        let mut events = self.runtime.events();
        let begun = Instant::now();
        loop {
            let state = self.state(name).await;
            if state.status == Status::Exited {
                return state;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{name} does not end: {state:?}"
            );
            let _ = tokio::time::timeout(Duration::from_secs(5), events.recv()).await;
        }
    }

    /// Runs a script to its end; its exit code and what it printed.
    pub async fn run(&self, spec: &ContainerSpec) -> (ContainerState, String) {
        self.start(spec).await;
        let state = self.exited(&spec.name).await;
        (state, self.log(&spec.name))
    }

    pub fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.root.join("logs").join(name).join("0.log")).unwrap();
        let body = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n";
        text.lines().map(body).collect()
    }

    pub async fn exec(&self, name: &str, script: &str) -> (i32, String) {
        let command = vec!["/bin/sh".into(), "-c".into(), script.into()];
        let spec = ExecSpec {
            command,
            ..ExecSpec::default()
        };
        let mut exec = self.runtime.exec("uid-1", name, spec).await.unwrap();
        let mut out = String::new();
        exec.stdout.read_to_string(&mut out).await.unwrap();
        exec.stderr.as_mut().unwrap().read_to_string(&mut out).await.unwrap();
        (exec.wait().await.unwrap(), out)
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let roots = fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let roots: Vec<PathBuf> = roots.chain(["/sys/fs/cgroup".into()]).collect();
        roots
            .iter()
            .map(|root| root.join(&self.name))
            .filter(|path| path.exists())
            .collect()
    }

    /// What the cgroup of a running container says in these files; `None` if it has none of that name.
    pub async fn settings(&self, name: &str, files: &[&str]) -> Option<Vec<String>> {
        let pid = self.state(name).await.pid.to_string();
        let holds = |folder: &Path| {
            let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.lines().any(|line| line == pid)
        };
        let mut folders = self.cgroups();
        while let Some(folder) = folders.pop() {
            let read = |file: &&str| Some(fs::read_to_string(folder.join(file)).ok()?.trim().to_owned());
            if holds(&folder) && folder.join(files.first()?).exists() {
                return files.iter().map(read).collect();
            }
            let below = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
            folders.extend(below.filter(|path| path.is_dir()));
        }
        None
    }

    /// Removes the pod and looks for what it may have left.
    pub async fn finish(mut self) {
        self.runtime.remove_sandbox("uid-1").await.unwrap();
        assert_eq!(self.runtime.pods().await.unwrap().len(), 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.name), "mounts are left:\n{mounts}");
        let count = |path: &str| fs::read_dir(self.root.join(path)).map_or(0, |entries| entries.count());
        assert_eq!(
            (count("run/pods"), count("data/containers"), count("data/tmp")),
            (0, 0, 0)
        );
        let until = Instant::now() + Duration::from_secs(5);
        while !self.processes().is_empty() {
            assert!(Instant::now() < until, "processes are left: {:?}", self.processes());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.remove_cgroups();
        fs::remove_dir_all(&self.root).unwrap();
        self.finished = true;
    }

    /// Removes what all pods share; fails if a pod's own cgroup, or any process, is left in it.
    pub fn remove_cgroups(&self) {
        for folder in self.cgroups() {
            let until = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(folder.join("shims")).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            fs::remove_dir(&folder).unwrap_or_else(|error| panic!("{} is left: {error}", folder.display()));
        }
    }

    /// Processes that have this test's name in their command line: its shims.
    pub fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        lines
            .filter(|line| line.contains(&self.name) && line.contains("shim"))
            .collect()
    }
}

fn tar(members: &[(&str, u32, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, link, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        match link {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, name, target).unwrap();
            }
            None if name.ends_with('/') => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, name, *bytes).unwrap();
            }
            None => builder.append_data(&mut header, name, *bytes).unwrap(),
        }
    }
    builder.into_inner().unwrap()
}

/// An image of two layers around busybox.
pub fn busybox_image() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("install the Debian package busybox-static");
    let mut members: Vec<(String, u32, Option<&str>, &[u8])> = vec![("bin/busybox".into(), 0o755, None, &busybox)];
    for applet in [
        "sh", "cat", "echo", "sleep", "ls", "id", "env", "hostname", "mount", "ps", "grep", "tail", "stty", "wc",
        "seq", "mknod", "head", "ip", "touch", "kill", "dd", "test", "true", "pwd", "readlink",
    ] {
        members.push((format!("bin/{applet}"), 0o777, Some("busybox"), b""));
    }
    members.push(("tmp/".into(), 0o1777, None, b""));
    members.push((
        "etc/passwd".into(),
        0o644,
        None,
        b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
    ));
    members.push((
        "etc/group".into(),
        0o644,
        None,
        b"root:x:0:\nwww:x:34:\nextra:x:50:web\n",
    ));
    members.push(("etc/lower".into(), 0o644, None, b"lower"));
    let borrowed: Vec<_> = members.iter().map(|(n, m, l, b)| (n.as_str(), *m, *l, *b)).collect();
    let first = tar(&borrowed);
    let second = tar(&[
        ("etc/.wh.lower", 0o644, None, b""),
        ("etc/upper", 0o644, None, b"upper"),
    ]);
    let digest = |bytes: &[u8]| agent::runtime::image::digest(bytes);
    let machine = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({"os": "linux", "architecture": machine, "rootfs": {"type": "layers", "diff_ids": [digest(&first), digest(&second)]},
        "config": {"Env": ["FROM=image", "PATH=/bin"], "Cmd": ["/bin/sh"], "StopSignal": "SIGINT"}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["1.tar", "2.tar"]}]);
    tar(&[
        ("manifest.json", 0o644, None, manifest.to_string().as_bytes()),
        ("config.json", 0o644, None, config.to_string().as_bytes()),
        ("1.tar", 0o644, None, &first),
        ("2.tar", 0o644, None, &second),
    ])
}
