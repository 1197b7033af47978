//! The container runtime on this machine's kernel. Needs root, cgroups, overlayfs and `/bin/busybox` (static).
//!
//! Every test has its own folders and its own cgroup parent, and looks at the end that nothing of it is left.

#![cfg(test)]

mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::runtime::{ContainerSpec, ExecSpec, ImageError, Limits, Mount, RuntimeError, SandboxSpec, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{World, busybox_image};

#[tokio::test]
async fn a_container_is_separate_from_the_node_and_shares_its_pods_namespaces() {
    let world = World::new("namespaces").await;
    let sandbox = world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    assert!(sandbox.netns.exists());
    let again = world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    assert_eq!(again.created, sandbox.created, "a sandbox that stands is returned");

    world
        .start(&world.container("first", "echo one > /dev/shm/note; sleep 1000"))
        .await;
    let script = "for ns in pid mnt net uts ipc; do readlink /proc/self/ns/$ns; done; hostname; echo $$; \
        cat /dev/shm/note; ip link show lo; echo upper is $(cat /etc/upper); \
        if test -e /etc/lower; then echo lower is there; else echo lower is hidden; fi; \
        echo masked are $(ls /proc/scsi/* /proc/acpi/* 2>/dev/null); echo zeros are $(head -c 4 /dev/zero | wc -c); \
        touch /proc/sys/kernel/printk 2>&1; touch /sys/x 2>&1; id";
    let (state, log) = world.run(&world.container("second", script)).await;
    assert_eq!(state.exit_code, 0, "{log}");
    let lines: Vec<&str> = log.lines().collect();
    let other = |ns: &str| {
        fs::read_link(format!("/proc/self/ns/{ns}"))
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    for (line, ns) in lines.iter().zip(["pid", "mnt", "net", "uts", "ipc"]) {
        assert_ne!(**line, other(ns), "{ns}");
    }
    let first = world.state("first").await;
    let ns_of = |pid: i32, ns: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{ns}"))
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    for (at, ns) in [(2, "net"), (3, "uts"), (4, "ipc")] {
        assert_eq!(lines[at], ns_of(first.pid, ns), "{ns} is the pod's");
    }
    assert_ne!(
        lines[0],
        ns_of(first.pid, "pid"),
        "pid namespaces are each container's own"
    );
    assert_eq!(&lines[5..8], ["web-0", "1", "one"]);
    assert!(lines[8].contains("LOOPBACK,UP"), "{log}");
    for line in [
        "upper is upper",
        "lower is hidden",
        "masked are",
        "zeros are 4",
        "touch: /proc/sys/kernel/printk: Read-only file system",
        "touch: /sys/x: Read-only file system",
    ] {
        assert!(lines.contains(&line), "{line:?} is missing:\n{log}");
    }
    assert!(log.contains("uid=0(root) gid=0(root)"), "{log}");
    world.finish().await;
}

#[tokio::test]
async fn environment_user_folder_and_rights_are_what_pod_and_image_say() {
    let world = World::new("process").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    let script = "pwd; echo $FROM $MORE $HOME $HOSTNAME; id; grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status";
    let root = ContainerSpec {
        env: vec![("FROM".into(), "pod".into()), ("MORE".into(), "a b".into())],
        working_dir: Some("/made/for/it".into()),
        ..world.container("root", script)
    };
    let (_, log) = world.run(&root).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(&lines[..2], ["/made/for/it", "pod a b /root web-0"], "{log}");
    assert!(log.contains("NoNewPrivs:\t0"), "{log}");
    // Without a device cgroup nobody may make devices; with one the set is containerd's.
    assert!(
        log.contains("CapEff:\t00000000a80425fb") || log.contains("CapEff:\t00000000a00425fb"),
        "{log}"
    );

    let web = ContainerSpec {
        run_as_user: Some(33),
        groups: vec![2000],
        no_new_privileges: true,
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..world.container("web", script)
    };
    let (_, log) = world.run(&web).await;
    assert!(
        log.contains("uid=33(web) gid=34(www) groups=34(www),50(extra),2000"),
        "{log}"
    );
    assert!(
        log.contains("CapEff:\t0000000000000000") && log.contains("CapBnd:\t0000000000000400"),
        "{log}"
    );
    assert!(log.contains("NoNewPrivs:\t1") && log.contains(" /srv "), "{log}");

    let careful = ContainerSpec {
        run_as_non_root: true,
        ..world.container("careful", "true")
    };
    let error = world.runtime.start_container("uid-1", &careful).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Spec(_)), "{error}");
    world.finish().await;
}

#[tokio::test]
async fn volumes_are_shown_and_read_only_ones_and_roots_refuse_writes() {
    let world = World::new("volumes").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    let volume = world.root.join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(volume.join("hosts"), "10.0.0.1 x\n").unwrap();
    let mount = |source: PathBuf, target: &str, read_only| Mount {
        source,
        target: target.into(),
        read_only,
        follow_host: false,
    };
    let spec = ContainerSpec {
        mounts: vec![
            mount(volume.clone(), "/data", false),
            mount(volume.clone(), "/data-ro", true),
            mount(volume.join("hosts"), "/etc/hosts", false),
        ],
        read_only_root: true,
        ..world.container(
            "a",
            "cat /etc/hosts; echo new > /data/new; touch /data-ro/x 2>&1; touch /x 2>&1; cat /data-ro/new",
        )
    };
    let (state, log) = world.run(&spec).await;
    assert_eq!(
        log,
        "10.0.0.1 x\ntouch: /data-ro/x: Read-only file system\ntouch: /x: Read-only file system\nnew\n"
    );
    assert_eq!(state.exit_code, 0);
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "new\n");
    world.finish().await;
}

#[tokio::test]
async fn limits_hold_and_a_kill_for_want_of_memory_is_told() {
    let world = World::new("limits").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    let greedy = ContainerSpec {
        limits: Limits {
            memory: Some(24 << 20),
            ..Limits::default()
        },
        ..world.container("greedy", "tail /dev/zero; echo survived; exit 3")
    };
    let (state, log) = world.run(&greedy).await;
    assert!(state.oom_killed, "{state:?} {log}");
    let forks = ContainerSpec {
        limits: Limits {
            pids: Some(6),
            ..Limits::default()
        },
        ..world.container("forks", "for i in $(seq 20); do sleep 5 & done; echo all")
    };
    let (state, log) = world.run(&forks).await;
    assert!(log.contains("can't fork") && !log.contains("all"), "{state:?} {log}");
    assert!(!state.oom_killed);
    let slow = ContainerSpec {
        limits: Limits {
            cpu_quota: Some(20_000),
            cpu_shares: Some(512),
            ..Limits::default()
        },
        ..world.container("slow", "sleep 1000")
    };
    world.start(&slow).await;
    // Whichever of the two versions of cgroups this machine has, with the weight that stands for 512 shares in each.
    let cpu = world.settings("slow", &["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"]);
    let cpu = cpu.await.map(|it| it.join(" "));
    let cpu_2 = world
        .settings("slow", &["cpu.max", "cpu.weight"])
        .await
        .map(|it| it.join(" "));
    match (cpu.as_deref(), cpu_2.as_deref()) {
        (Some("20000 100000 512"), None) | (None, Some("20000 100000 20")) => {}
        other => panic!("the kernel holds other limits: {other:?}"),
    }
    world.finish().await;
}

#[tokio::test]
async fn exit_codes_signals_and_failed_starts_are_told() {
    let world = World::new("exits").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    let (state, _) = world.run(&world.container("seven", "exit 7")).await;
    assert_eq!((state.exit_code, state.signal, state.oom_killed), (7, 0, false));
    assert!(state.started.unwrap() <= state.finished.unwrap() && state.id.len() == 64 && state.stop_signal == 2);

    world
        .start(&world.container(
            "trap",
            "trap 'echo bye; exit 4' TERM; echo ready; while true; do sleep 0.1; done",
        ))
        .await;
    while !world.log("trap").contains("ready") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.runtime.signal("uid-1", "trap", 15).await.unwrap();
    let state = world.exited("trap").await;
    assert_eq!((state.exit_code, world.log("trap").as_str()), (4, "ready\nbye\n"));
    world.runtime.signal("uid-1", "trap", 15).await.unwrap();

    world.start(&world.container("killed", "sleep 1000")).await;
    world.runtime.signal("uid-1", "killed", 9).await.unwrap();
    let state = world.exited("killed").await;
    assert_eq!((state.exit_code, state.signal), (137, 9));

    for (command, words) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/bin/none", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let spec = ContainerSpec {
            command: vec![command.into()],
            ..world.container("bad", "")
        };
        let error = world.runtime.start_container("uid-1", &spec).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Start(text) if text.contains(words)),
            "{command}: {error}"
        );
        let pod = world.runtime.pod("uid-1").await.unwrap().unwrap();
        assert!(pod.container("bad").is_none(), "a failed start leaves nothing");
    }
    let missing = ContainerSpec {
        image: "nowhere/none".into(),
        ..world.container("bad", "")
    };
    let error = world.runtime.start_container("uid-1", &missing).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NoImage(_)), "{error}");
    world.finish().await;
}

#[tokio::test]
async fn logs_are_written_as_cri_says_and_rotated() {
    let world = World::new("logs").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    world
        .run(&world.container("two", "echo out; echo err >&2; echo -n end"))
        .await;
    let text = fs::read_to_string(world.root.join("logs/two/0.log")).unwrap();
    for line in text.lines() {
        let stamp = line.split(' ').next().unwrap();
        assert!(stamp.parse::<jiff::Timestamp>().is_ok() && stamp.len() == 30, "{line}");
    }
    for end in [" stdout F out\n", " stderr F err\n", " stdout F end\n"] {
        assert!(text.contains(end), "{text}");
    }
    let chatty = ContainerSpec {
        log_max_bytes: Some(10_000),
        log_max_files: Some(2),
        ..world.container("chatty", "for i in $(seq 3); do seq 500; sleep 1.1; done")
    };
    world.run(&chatty).await;
    let files = fs::read_dir(world.root.join("logs/chatty")).unwrap().count();
    assert_eq!(files, 2);
    world.finish().await;
}

#[tokio::test]
async fn commands_run_beside_a_container_with_pipes_and_terminals() {
    let world = World::new("exec").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    let spec = ContainerSpec {
        env: vec![("MARK".into(), "yes".into())],
        limits: Limits {
            pids: Some(50),
            ..Limits::default()
        },
        ..world.container("main", "sleep 1000")
    };
    world.start(&spec).await;
    let (code, out) = world
        .exec(
            "main",
            "echo $MARK; hostname; grep -c sleep /proc/1/cmdline; echo problem >&2; exit 5",
        )
        .await;
    assert_eq!((code, out.as_str()), (5, "yes\nweb-0\n1\nproblem\n"));
    let (_, caps) = world.exec("main", "grep CapBnd /proc/self/status").await;
    assert!(caps.contains("a80425fb") || caps.contains("a00425fb"), "{caps}");

    let cat = ExecSpec {
        command: vec!["cat".into()],
        stdin: true,
        tty: false,
    };
    let mut exec = world.runtime.exec("uid-1", "main", cat).await.unwrap();
    let big = "0123456789".repeat(50_000);
    let mut stdin = exec.stdin.take().unwrap();
    let mut back = String::new();
    let write = async {
        stdin.write_all(big.as_bytes()).await.unwrap();
        drop(stdin);
    };
    let (_, read) = tokio::join!(write, exec.stdout.read_to_string(&mut back));
    read.unwrap();
    assert!(back == big, "{} bytes came back", back.len());
    assert_eq!(exec.wait().await.unwrap(), 0);

    let shell = ExecSpec {
        command: vec!["sh".into()],
        stdin: true,
        tty: true,
    };
    let mut exec = world.runtime.exec("uid-1", "main", shell).await.unwrap();
    exec.resize(97, 31);
    let mut stdin = exec.stdin.take().unwrap();
    stdin
        .write_all(b"stty size; test -t 0 && echo is-a-$((1+1))-terminal; exit 6\n")
        .await
        .unwrap();
    let mut out = String::new();
    exec.stdout.read_to_string(&mut out).await.unwrap();
    assert!(out.contains("31 97") && out.contains("is-a-2-terminal"), "{out}");
    assert_eq!(exec.wait().await.unwrap(), 6);
    assert_eq!(exec.wait().await.unwrap(), 6, "asked again");

    // A command whose client goes ends.
    let spec = ExecSpec {
        command: vec!["sleep".into(), "777".into()],
        ..ExecSpec::default()
    };
    drop(world.runtime.exec("uid-1", "main", spec).await.unwrap());
    let begun = Instant::now();
    while world.exec("main", "ps | grep -v grep | grep -q 'sleep 777'").await.0 == 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "it lives on");
    }
    let spec = ExecSpec {
        command: vec!["nope".into()],
        ..ExecSpec::default()
    };
    let error = world.runtime.exec("uid-1", "main", spec).await.err().unwrap();
    assert!(
        matches!(&error, RuntimeError::Start(text) if text.contains("not found in $PATH")),
        "{error}"
    );
    let error = world
        .runtime
        .exec("uid-1", "other", ExecSpec::default())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RuntimeError::NoContainer(_)), "{error}");
    world.finish().await;
}

#[tokio::test]
async fn a_client_can_join_a_containers_own_streams() {
    let world = World::new("attach").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    let pipes = ContainerSpec {
        stdin: true,
        stdin_once: true,
        ..world.container("pipes", "while read line; do echo got $line; done; exit 2")
    };
    world.start(&pipes).await;
    let only_reads = world.runtime.attach("uid-1", "pipes", false).await.unwrap();
    assert!(only_reads.stdin.is_none());
    drop(only_reads);
    let mut joined = world.runtime.attach("uid-1", "pipes", true).await.unwrap();
    let mut stdin = joined.stdin.take().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    let mut seen = [0; 8];
    joined.stdout.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"got one\n");
    drop(stdin);
    assert_eq!(
        joined.wait().await.unwrap(),
        2,
        "the end of its input reaches it, and its end us"
    );
    assert_eq!(world.exited("pipes").await.exit_code, 2);
    assert_eq!(world.log("pipes"), "got one\n");

    let terminal = ContainerSpec {
        stdin: true,
        tty: true,
        ..world.container("terminal", "test -t 1 && echo terminal; read line; stty size; exit 3")
    };
    world.start(&terminal).await;
    let mut joined = world.runtime.attach("uid-1", "terminal", true).await.unwrap();
    joined.resize(80, 25);
    joined.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    let mut out = String::new();
    joined.stdout.read_to_string(&mut out).await.unwrap();
    assert!(out.contains("25 80"), "{out}");
    assert_eq!(joined.wait().await.unwrap(), 3);
    assert!(world.log("terminal").contains("terminal"));
    world.finish().await;
}

#[tokio::test]
async fn a_restarted_agent_finds_its_pods_running_and_a_dead_shim_is_told() {
    let mut world = World::new("restart").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    world.start(&world.container("stays", "sleep 1000")).await;
    world
        .start(&world.container(
            "ends",
            "while ! test -e /tmp/go; do sleep 0.05; done; echo done; exit 9",
        ))
        .await;
    let before = world.state("stays").await;
    world.restart().await;
    let pods = world.runtime.pods().await.unwrap();
    assert_eq!(
        (pods.len(), pods[0].name.as_str(), pods[0].shim_alive),
        (1, "web", true)
    );
    let after = world.state("stays").await;
    assert_eq!(
        (after.pid, after.id, after.started),
        (before.pid, before.id, before.started)
    );
    assert_eq!(world.exec("ends", "touch /tmp/go").await.0, 0);
    assert_eq!(world.exited("ends").await.exit_code, 9);
    assert_eq!(world.log("ends"), "done\n");
    let again = ContainerSpec {
        attempt: 1,
        ..world.container("ends", "exit 1")
    };
    world.start(&again).await;
    world.exited("ends").await;
    let pod = world.runtime.pod("uid-1").await.unwrap().unwrap();
    assert_eq!(pod.containers.len(), 3);
    assert_eq!(pod.container("ends").unwrap().attempt, 1);
    world.runtime.remove_container("uid-1", "ends", 0).await.unwrap();
    world.runtime.remove_container("uid-1", "ends", 0).await.unwrap();
    assert_eq!(world.runtime.pod("uid-1").await.unwrap().unwrap().containers.len(), 2);

    // The shim is killed: its containers cannot be followed any more, and can be cleared away.
    let status = fs::read_to_string(format!("/proc/{}/status", after.pid)).unwrap();
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut events = world.runtime.events();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(events.recv().await.unwrap().pod_uid, "uid-1");
    let pod = world.runtime.pod("uid-1").await.unwrap().unwrap();
    assert!(!pod.shim_alive);
    let lost = pod.container("stays").unwrap();
    assert_eq!((lost.status, lost.exit_code), (Status::Unknown, 137));
    world.finish().await;
}

#[tokio::test]
async fn a_broken_archive_is_the_archives_fault() {
    let world = World::new("broken").await;
    let path = world.root.join("broken.tar");
    let whole = busybox_image();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = world.runtime.import(&path).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Archive { reason, .. } if reason.contains("ends in the middle")),
        "{error}"
    );
    let error = world.runtime.import(&world.root.join("none.tar")).await.unwrap_err();
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
    assert_eq!(world.runtime.images().await.len(), 1, "what was there stays");
    world.finish().await;
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_and_processes_sees_them() {
    let world = World::new("host").await;
    let sandbox = SandboxSpec {
        host_network: true,
        host_pid: true,
        host_ipc: true,
        ..world.sandbox()
    };
    world.runtime.create_sandbox(&sandbox).await.unwrap();
    let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; sleep 1000 & exit 0";
    let (_, log) = world.run(&world.container("a", script)).await;
    let own = |ns: &str| {
        fs::read_link(format!("/proc/self/ns/{ns}"))
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    assert_eq!(log, format!("{}\n{}\n", own("net"), own("pid")));
    world.finish().await;
}

#[tokio::test]
async fn a_privileged_container_has_all_rights_and_devices_and_another_cannot_open_any() {
    let world = World::new("privileged").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    let script = "grep CapBnd /proc/self/status; touch /proc/sys/kernel/printk && echo writable; ls /dev | wc -l; \
        mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem > /tmp/read && echo opened; mount -t tmpfs t /tmp && echo mounted";
    let all = ContainerSpec {
        privileged: true,
        ..world.container("all", script)
    };
    let (_, log) = world.run(&all).await;
    assert!(log.contains("writable\n") && log.contains("mounted\n"), "{log}");
    let (_, log) = world.run(&world.container("plain", script)).await;
    assert!(
        !log.contains("writable\n") && !log.contains("opened\n") && !log.contains("mounted\n"),
        "{log}"
    );
    assert!(log.contains("CapBnd:\t00000000a"), "{log}");
    world.finish().await;
}

#[tokio::test]
async fn a_shim_that_does_not_answer_is_killed_with_its_pod() {
    let world = World::new("stuck").await;
    world.runtime.create_sandbox(&world.sandbox()).await.unwrap();
    world.start(&world.container("a", "sleep 1000")).await;
    let pid = world.state("a").await.pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    // In the agent's there may be the cluster's token.
    let environment = fs::read(format!("/proc/{}/environ", parent.trim())).unwrap();
    assert_eq!(String::from_utf8_lossy(&environment), "");
    let shim = nix::unistd::Pid::from_raw(parent.trim().parse().unwrap());
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();
    world.runtime.remove_sandbox("uid-1").await.unwrap();
    world.finish().await;
}
