//! What a person gives the built program: command line, file and environment, and what it says of a mistake.

#![cfg(test)]

use std::path::PathBuf;
use std::process::Command;

/// A configuration file of this test.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file(name: &str, text: &str) -> File {
    let path = std::env::temp_dir().join(format!("amphipod-{name}-{}.yaml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    File(path)
}

/// Runs the agent with something that it must refuse, and answers what it says.
fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_k3s-agent"));
    command.env_clear().args(arguments).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    said
}

#[test]
fn the_command_line_goes_before_the_file_and_the_file_before_the_environment() {
    let both = file("precedence", "server: https://a:1\ntoken: pw\nnode-name: from_file\n");
    let path = both.0.to_str().unwrap();
    let environment = [
        ("K3S_NODE_NAME", "from_env"),
        ("K3S_URL", "https://a:1"),
        ("K3S_TOKEN", "pw"),
    ];
    let says = |arguments: &[&str], environment: &[(&str, &str)], name: &str| {
        let said = refused(arguments, environment);
        assert!(said.contains(&format!("node name {name:?} is not valid")), "{said}");
    };
    says(&["--config=/dev/null"], &environment, "from_env");
    says(&["--config", path], &environment, "from_file");
    says(&["-c", path, "--node-name", "from_line"], &environment, "from_line");
    // As in K3s, the variable that names the file goes before the flag.
    let with_file = [&environment[..], &[("K3S_CONFIG_FILE", path)]].concat();
    says(&["--config=/dev/null"], &with_file, "from_file");
}

#[test]
fn a_mistake_is_named_with_its_place_and_no_secret() {
    let broken = file("mistake", "token: hidden-token\nserver: [https://a:1\n");
    let said = refused(&["--config", broken.0.to_str().unwrap()], &[]);
    assert!(said.contains("line 2: "), "{said}");
    assert!(!said.contains("hidden-token"), "{said}");
    assert!(refused(&["--config=/nonexistent/file"], &[]).contains("/nonexistent/file"));
    assert!(refused(&["--config=/dev/null"], &[]).contains("--server is required"));
}
