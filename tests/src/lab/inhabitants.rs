//! The processes of a host: all that were started on it and live, pods and their shims included.
//!
//! A pod has a network of its own and each container mounts of its own, but a shim has its host's mounts, and the
//! containers are its children.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process of this machine, as `/proc` shows it.
struct Process {
    id: u32,
    parent: u32,
    /// What its mount namespace is called.
    mounts: PathBuf,
}

/// Kills whatever has the mounts of the holder, and all its children; the holder lives on. Nothing if it has our own mounts:
/// then it was never made a host.
pub fn end(holder: u32) {
    let all = processes();
    let find = |id: u32| all.iter().find(|one| one.id == id);
    let (Some(host), Some(own)) = (find(holder), find(std::process::id())) else {
        return;
    };
    if host.mounts == own.mounts {
        return;
    }
    let mut ours: BTreeSet<u32> = all
        .iter()
        .filter(|one| one.mounts == host.mounts)
        .map(|one| one.id)
        .collect();
    loop {
        let known = ours.len();
        let children = all.iter().filter(|one| ours.contains(&one.parent));
        let children: Vec<u32> = children.map(|one| one.id).collect();
        ours.extend(children);
        if ours.len() == known {
            break;
        }
    }
    for id in ours.into_iter().filter(|id| *id != holder) {
        // One that has ended meanwhile is what we want.
        let _ = kill(Pid::from_raw(i32::try_from(id).unwrap()), Signal::SIGKILL);
    }
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| process(&entry.path())).collect()
}

/// Nothing for what is no process, or has ended.
fn process(folder: &Path) -> Option<Process> {
    let id = folder.file_name()?.to_str()?.parse().ok()?;
    let mounts = fs::read_link(folder.join("ns/mnt")).ok()?;
    // "ID (NAME) STATE PARENT …", and a name may hold anything. Source: proc_pid_stat(5).
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let parent = rest.split_whitespace().nth(1)?.parse().ok()?;
    Some(Process { id, parent, mounts })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell with mounts of its own. Returns it and the numbers that it prints first.
    fn shell(script: &str, lines: usize) -> (Child, Vec<u32>) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let printed = BufReader::new(child.stdout.take().unwrap()).lines().take(lines);
        let numbers = printed.map(|line| line.unwrap().parse().unwrap()).collect();
        (child, numbers)
    }

    /// Ends when its input does.
    fn let_go(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn what_lives_on_a_host_is_ended_with_its_children_and_nothing_else() {
        // A shim, and a container of its with mounts of its own.
        let script =
            "sh -c 'echo $$; unshare --mount sh -c \"echo \\$\\$; exec sleep 1000\" & exec sleep 1000' & exec cat";
        let (mut host, pods) = shell(script, 2);
        let (mut other, _) = shell("echo 1; exec cat", 1);
        end(host.id());
        for id in pods {
            super::super::until("it has ended", || {
                let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ")
            });
        }
        assert_eq!(host.try_wait().unwrap(), None, "the holder was killed");
        assert_eq!(other.try_wait().unwrap(), None, "another host was harmed");
        let_go(host);
        let_go(other);
    }
}
