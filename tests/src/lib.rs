//! Shared pieces of tests: real databases, hosts of one's own in namespaces, and commands that must succeed.

pub mod database;
pub mod history;
pub mod lab;

use std::process::Command;

/// Runs a command and returns what it printed.
///
/// # Panics
/// When it cannot be run or fails: the test's message holds the command and both outputs.
#[expect(clippy::panic, reason = "a helper of tests")]
pub fn run(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => panic!(
            "{program} {} failed ({}):\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("cannot run {program}: {error}"),
    }
}

/// Runs the named test of this binary again in network and mount namespaces of its own, so that nothing it does to
/// links, routes or mounts outlives it. Returns true inside, where the test goes on; false outside, once that has passed.
///
/// # Panics
/// When the inner run fails.
pub fn in_own_namespaces(test: &str) -> bool {
    inside_own_namespaces(&["--exact", test, "--nocapture"])
}

/// The same for a program that is no test: runs it again with these arguments.
///
/// # Panics
/// When the inner run fails.
#[expect(clippy::disallowed_methods, reason = "the marker is how the inner run knows itself")]
pub fn inside_own_namespaces(arguments: &[&str]) -> bool {
    const MARKER: &str = "AMPHIPOD_TEST_INSIDE";
    if std::env::var_os(MARKER).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap_or_default();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--"]).arg(this).args(arguments);
    let status = command.env(MARKER, "1").status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{} failed in its namespaces: {status:?}",
        arguments.join(" ")
    );
    false
}
