//! `k3s certificate`: what certificates this machine has on disk, and having them made anew. Source: K3s v1.36 `pkg/cli/cert`.
//!
//! Asks no server. What K3s logs is logged to standard error in the form of its log; tables and data go to standard output.

mod check;
mod rotate;

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::Path;

use agent::join::services::Service;
use agent::wire::time;
use anyhow::{anyhow, bail};
use jiff::Timestamp;

use crate::config::admin::{CertificateVerb, CertificatesOf};

/// How bad a line of the log is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

/// A line of the log.
type Line = (Level, String);

/// Runs a verb; the answer is to be printed.
///
/// # Errors
/// What is wrong, and what to do.
pub fn run(verb: CertificateVerb) -> anyhow::Result<String> {
    match verb {
        CertificateVerb::Check { of, output } => {
            let data_dir = of.data.path();
            let (said, services) = services(&of, &data_dir, "checking")?;
            say(said.into_iter(), of.debug);
            let found = check::collect(&data_dir, &services)?;
            say(found.missing(), of.debug);
            let (lines, text) = check::shown(&found.certificates, output, Timestamp::now());
            say(lines.into_iter(), of.debug);
            Ok(text)
        }
        CertificateVerb::Rotate { of } => {
            let data_dir = of.data.path();
            let (said, services) = services(&of, &data_dir, "rotating")?;
            say(said.into_iter(), of.debug);
            let lines = rotate::run(&data_dir, &services, Timestamp::now())?;
            say(lines.into_iter(), of.debug);
            Ok(String::new())
        }
        CertificateVerb::RotateCa { .. } => bail!(
            "k3s certificate rotate-ca is not there yet: this program cannot replace a cluster's authorities, which are good for ten \
             years (k3s certificate check --output table says until when)"
        ),
    }
}

/// What was asked for, or all of this machine; a machine with a server's folder is a server.
fn services(of: &CertificatesOf, data_dir: &Path, doing: &str) -> anyhow::Result<(Option<Line>, Vec<Service>)> {
    let server = is_folder(&data_dir.join("server"))?;
    if !server && !is_folder(&data_dir.join("agent"))? {
        bail!(
            "there is neither a server nor an agent in {} (--data-dir names another place)",
            data_dir.display()
        );
    }
    if !of.services.is_empty() {
        return Ok((None, of.services.clone()));
    }
    let (text, services) = match server {
        true => (
            format!("Server detected, {doing} agent and server certificates"),
            Service::SERVER.to_vec(),
        ),
        false => (
            format!("Agent detected, {doing} agent certificates"),
            Service::AGENT.to_vec(),
        ),
    };
    Ok((Some((Level::Info, text)), services))
}

fn is_folder(path: &Path) -> anyhow::Result<bool> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(unreadable(path, &error)),
        Err(_) => Ok(false),
    }
}

/// What is wrong with a path that is there, and who may read it.
fn unreadable(path: &Path, error: &io::Error) -> anyhow::Error {
    let cure = match error.kind() {
        io::ErrorKind::PermissionDenied => "; run this as root, whose files these are",
        _ => "",
    };
    anyhow!("cannot read {}: {error}{cure}", path.display())
}

fn say(lines: impl Iterator<Item = Line>, debug: bool) {
    let (terminal, now) = (io::stderr().is_terminal(), Timestamp::now());
    for (level, text) in lines.filter(|(level, _)| debug || *level != Level::Debug) {
        eprintln!("{}", line(level, &text, now, terminal));
    }
}

/// As logrus, whose lines K3s writes, prints it on a terminal or elsewhere.
fn line(level: Level, text: &str, now: Timestamp, terminal: bool) -> String {
    let (short, long) = match level {
        Level::Debug => ("DEBU", "debug"),
        Level::Info => ("INFO", "info"),
        Level::Warning => ("WARN", "warning"),
        Level::Error => ("ERRO", "error"),
    };
    match terminal {
        true => format!("{short}[0000] {text}"),
        false => format!("time=\"{}\" level={long} msg={text:?}", time::seconds(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_k3s_log() {
        let now = "2026-11-27T10:00:00Z".parse().unwrap();
        assert_eq!(
            line(Level::Warning, "a \"b\"", now, false),
            r#"time="2026-11-27T10:00:00Z" level=warning msg="a \"b\"""#
        );
        assert_eq!(line(Level::Error, "x", now, true), "ERRO[0000] x");
    }
}
