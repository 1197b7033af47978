//! `k3s certificate rotate`: certificates and keys are copied away and removed; the next start of whose they are makes new ones.
//!
//! The copies are whole, and under their final name, before the first file goes, so a crash at any step leaves what can be
//! started. What exists then without the other half of its pair is made anew, and another rotation completes the rest.

use std::path::{Path, PathBuf};
use std::{fs, io};

use agent::join::services::Service;
use anyhow::{Context as _, anyhow};
use jiff::Timestamp;

use super::{Level, Line};
use crate::join::files::{self, PRIVATE, PRIVATE_FOLDER};
use crate::run::data_dir::{self, DataDirError};

/// Copies that are being made are in a folder of this name's form until they are whole.
const UNFINISHED: (&str, &str) = (".tls-", ".new");
/// What the listener of our server shows; K3s' has a file of its own.
const LISTENER: [&str; 2] = [
    "server/tls/serving-kube-apiserver.crt",
    "server/tls/serving-kube-apiserver.key",
];

/// One thing done to the disk.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    /// Remove what a rotation that was cut off has left.
    Clear(PathBuf),
    /// Make a folder.
    Folder(PathBuf),
    /// Copy a file.
    Copy { from: PathBuf, to: PathBuf },
    /// Give the folder of copies its name.
    Publish { from: PathBuf, to: PathBuf },
    /// Tell a K3s server, should one start here again, to renew its listener's certificate.
    Trigger(PathBuf),
    /// Remove a file.
    Remove(PathBuf),
}

/// What a rotation does.
struct Plan {
    backup: PathBuf,
    steps: Vec<Step>,
}

/// Rotates; the answer is to be logged.
///
/// # Errors
/// When the server runs, or the disk's. What was not removed yet is rotated by another call.
pub fn run(data_dir: &Path, services: &[Service], now: Timestamp) -> anyhow::Result<Vec<Line>> {
    let is_server = data_dir.join("server").is_dir();
    let _lock = is_server
        .then(|| data_dir::take(data_dir))
        .transpose()
        .map_err(|error| match error {
            DataDirError::Taken(_) => anyhow!("the server runs: stop it first (systemctl stop k3s); its pods go on"),
            error @ DataDirError::Disk(_) => error.into(),
        })?;
    let plan = plan(data_dir, services, now).context("cannot see what there is to rotate")?;
    for step in &plan.steps {
        perform(step).context("the rotation is not complete; once the cause is gone, run it again")?;
    }
    let mut lines = Vec::new();
    if services.contains(&Service::K3sServer) {
        lines.push((Level::Info, "Rotating dynamic listener certificate".to_owned()));
    }
    let with_files = services.iter().filter(|service| **service != Service::K3sServer);
    lines.extend(with_files.map(|service| (Level::Info, format!("Rotating certificates for {}", service.name()))));
    lines.push((
        Level::Info,
        format!(
            "Successfully backed up certificates to {}, please restart k3s server or agent to rotate certificates",
            plan.backup.display()
        ),
    ));
    Ok(lines)
}

fn plan(data_dir: &Path, services: &[Service], now: Timestamp) -> io::Result<Plan> {
    let (server, agent) = (data_dir.join("server"), data_dir.join("agent"));
    let tls = server.join("tls");
    let parent = if tls.is_dir() { &server } else { &agent };
    let mut at = now.as_second();
    while parent.join(format!("tls-{at}")).exists() {
        at += 1;
    }
    let (before, after) = UNFINISHED;
    let (fresh, backup) = (
        parent.join(format!("{before}{at}{after}")),
        parent.join(format!("tls-{at}")),
    );
    let mut removed: Vec<_> = services.iter().flat_map(|service| service.files(data_dir)).collect();
    let listener = services.contains(&Service::K3sServer);
    if listener {
        removed.extend(LISTENER.map(|name| data_dir.join(name)));
    }
    removed.retain(|path| path.is_file());

    let mut steps = leftovers(parent)?;
    steps.push(Step::Folder(fresh.clone()));
    if tls.is_dir() {
        copies(&tls, &fresh, &mut steps)?;
    }
    // K3s puts a node's files among its server's, which has some of the same names.
    let beside = if tls.is_dir() {
        fresh.join("agent")
    } else {
        fresh.clone()
    };
    steps.push(Step::Folder(beside.clone()));
    let of_agent = removed.iter().filter(|path| path.starts_with(&agent));
    steps.extend(of_agent.map(|path| Step::Copy {
        from: path.clone(),
        to: beside.join(path.file_name().unwrap_or_default()),
    }));
    steps.push(Step::Publish {
        from: fresh,
        to: backup.clone(),
    });
    if listener && tls.join("dynamic-cert.json").exists() {
        steps.push(Step::Trigger(tls.join("dynamic-cert-regenerate")));
    }
    steps.extend(removed.into_iter().map(Step::Remove));
    Ok(Plan { backup, steps })
}

fn leftovers(parent: &Path) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(UNFINISHED.0) && name.ends_with(UNFINISHED.1) {
            steps.push(Step::Clear(entry.path()));
        }
    }
    Ok(steps)
}

/// Of all files in a folder and below; those with a dot are half written ones.
fn copies(from: &Path, to: &Path, steps: &mut Vec<Step>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let to = to.join(name);
        if path.is_dir() {
            steps.push(Step::Folder(to.clone()));
            copies(&path, &to, steps)?;
        } else {
            steps.push(Step::Copy { from: path, to });
        }
    }
    Ok(())
}

fn perform(step: &Step) -> io::Result<()> {
    match step {
        Step::Clear(path) => fs::remove_dir_all(path),
        Step::Folder(path) => files::folder(path, PRIVATE_FOLDER),
        Step::Copy { from, to } => files::write(to, &fs::read(from)?, PRIVATE),
        Step::Publish { from, to } => files::rename(from, to),
        Step::Trigger(path) => files::write(path, b"", PRIVATE),
        Step::Remove(path) => files::remove(path),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::join::pki::{Names, Own, Pki};
    use crate::scratch::Scratch;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn start(data_dir: &Path) -> Pki {
        Pki::load_or_create(&data_dir.join("server"), &Names::default(), at("2026-11-27T10:00:00Z")).unwrap()
    }

    /// A server's directory with a node's files in it.
    fn server(name: &str) -> Scratch {
        let scratch = Scratch::new(name);
        start(&scratch.0);
        fs::create_dir(scratch.0.join("agent")).unwrap();
        for name in [
            "client-kubelet",
            "serving-kubelet",
            "client-kube-proxy",
            "client-k3s-controller",
        ] {
            for end in ["crt", "key"] {
                fs::write(scratch.0.join(format!("agent/{name}.{end}")), format!("{name}.{end}")).unwrap();
            }
        }
        scratch
    }

    fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.is_file());
        files
            .map(|path| {
                (
                    path.file_name().unwrap().to_str().unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn everything_of_a_server_is_made_anew_but_authorities_and_tokens() {
        let scratch = server("rotate-all");
        let hash = start(&scratch.0).token_hash();
        let before = contents(&scratch.0.join("server/tls"));
        let lines = run(&scratch.0, &Service::SERVER, at("2026-11-27T11:00:00Z")).unwrap();
        let backup = scratch.0.join("server/tls-1795777200");
        let (_, last) = lines.last().unwrap();
        assert!(
            last.starts_with(&format!(
                "Successfully backed up certificates to {}, ",
                backup.display()
            )),
            "{last}"
        );
        let kept = contents(&backup);
        for (name, content) in &before {
            assert_eq!(kept.get(name), Some(content), "{name} in the copy");
        }
        assert_eq!(
            contents(&backup.join("agent"))["serving-kubelet.key"],
            b"serving-kubelet.key"
        );
        assert!(backup.join("etcd/peer-ca.key").exists());
        assert!(contents(&scratch.0.join("agent")).is_empty());
        assert_eq!(start(&scratch.0).token_hash(), hash);
        for (name, content) in contents(&scratch.0.join("server/tls")) {
            let stays = name.contains("-ca.") || name == "service.key";
            assert_eq!(content == before[&name], stays, "{name}");
        }
    }

    #[test]
    fn one_service_is_rotated_alone() {
        let scratch = server("rotate-one");
        let before = contents(&scratch.0.join("server/tls"));
        run(&scratch.0, &[Service::Admin], at("2026-11-27T11:00:00Z")).unwrap();
        let pki = start(&scratch.0);
        assert!(pki.own(Own::Admin).is_some());
        let changed: Vec<_> = contents(&scratch.0.join("server/tls"))
            .into_iter()
            .filter(|(name, content)| before[name] != *content)
            .map(|(name, _)| name)
            .collect();
        assert_eq!(changed, ["client-admin.crt", "client-admin.key"]);
        assert_eq!(contents(&scratch.0.join("agent")).len(), 8);
        run(&scratch.0, &[Service::K3sServer], at("2026-11-27T11:00:00Z")).unwrap();
        assert!(!scratch.0.join("server/tls/serving-kube-apiserver.crt").exists());
        assert!(
            scratch.0.join("server/tls-1795777201").is_dir(),
            "no copy is overwritten"
        );
        assert!(!scratch.0.join("server/tls/dynamic-cert-regenerate").exists());
        fs::write(scratch.0.join("server/tls/dynamic-cert.json"), "{}").unwrap();
        run(&scratch.0, &[Service::K3sServer], at("2026-11-27T11:00:00Z")).unwrap();
        assert!(
            scratch.0.join("server/tls/dynamic-cert-regenerate").exists(),
            "a K3s was here"
        );
    }

    #[test]
    fn an_agents_files_are_kept_beside_it() {
        let scratch = server("rotate-agent");
        fs::remove_dir_all(scratch.0.join("server")).unwrap();
        run(&scratch.0, &Service::AGENT, at("2026-11-27T11:00:00Z")).unwrap();
        assert_eq!(contents(&scratch.0.join("agent/tls-1795777200")).len(), 8);
        assert!(contents(&scratch.0.join("agent")).is_empty());
        assert!(!scratch.0.join("server").exists(), "it does not become a server");
    }

    #[test]
    fn a_crash_after_any_step_leaves_what_starts_and_what_another_rotation_completes() {
        const SERVICES: [Service; 3] = [Service::Admin, Service::Kubelet, Service::K3sServer];
        let now = at("2026-11-27T11:00:00Z");
        let whole = server("rotate-crash-whole");
        let (hash, before) = (start(&whole.0).token_hash(), contents(&whole.0.join("server/tls")));
        let steps = plan(&whole.0, &SERVICES, now).unwrap().steps;
        let published = steps
            .iter()
            .position(|step| matches!(step, Step::Publish { .. }))
            .unwrap();
        assert!(steps.len() > published + 10, "{steps:?}");
        for done in [0, 1, 2, published / 2].into_iter().chain(published..steps.len()) {
            let scratch = Scratch::new("rotate-crash");
            for folder in ["server/tls/etcd", "server/tls", "agent"] {
                fs::create_dir_all(scratch.0.join(folder)).unwrap();
                for (name, content) in contents(&whole.0.join(folder)) {
                    fs::write(scratch.0.join(folder).join(name), content).unwrap();
                }
            }
            let plan = plan(&scratch.0, &SERVICES, now).unwrap();
            for step in &plan.steps[..done] {
                perform(step).unwrap();
            }
            let gone = before
                .keys()
                .filter(|name| !scratch.0.join("server/tls").join(name).exists());
            for name in gone {
                assert_eq!(
                    contents(&plan.backup)[name],
                    before[name],
                    "after {done} steps: {name} is lost"
                );
            }
            assert_eq!(start(&scratch.0).token_hash(), hash, "after {done} steps");
            run(&scratch.0, &SERVICES, now).unwrap();
            start(&scratch.0);
            let after = contents(&scratch.0.join("server/tls"));
            assert_ne!(
                after["client-admin.key"], before["client-admin.key"],
                "after {done} steps"
            );
            let entries = fs::read_dir(scratch.0.join("server")).unwrap();
            let litter = entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
            assert_eq!(litter.count(), 0, "after {done} steps");
        }
    }

    #[test]
    fn a_running_server_is_not_rotated() {
        let scratch = server("rotate-running");
        let before = contents(&scratch.0.join("server/tls"));
        let _lock = data_dir::take(&scratch.0).unwrap();
        let error = run(&scratch.0, &[Service::Admin], at("2026-11-27T11:00:00Z")).unwrap_err();
        assert!(error.to_string().contains("stop it first"), "{error}");
        assert_eq!(contents(&scratch.0.join("server/tls")), before);
    }
}
