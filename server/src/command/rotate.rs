//! `k3s token rotate`: asks a server for another token of the cluster. Source: K3s v1.36 `pkg/cli/token` (`Rotate`).
//!
//! The server does it (`join::rotation`); what is here finds the present token, proves the server by the authority that it
//! pins, and reads the new token from where nobody else sees it.

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::api::Endpoint;
use agent::api::request::status_of;
use agent::config::{Secret, ServerUrl};
use agent::join::{Address, Clock, fetch_ca, trust};
use agent::wire::token::{Credential, Token, server_secret};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use crate::config::admin::Rotate;

/// The datastore may be far away; K3s' server has ten seconds for it.
const LIMIT: Duration = Duration::from_secs(30);
/// What Ctrl-C types.
const INTERRUPT: u8 = 3;
/// A token is a line.
const LONGEST: u64 = 4096;

/// Rotates; the answer is to be printed.
///
/// # Errors
/// What is wrong, and what to do.
pub async fn run(flags: &Rotate) -> anyhow::Result<String> {
    let token = present(flags)?;
    let parsed = Token::parse(token.expose().trim()).context("the present token")?;
    if matches!(parsed.credential, Credential::Bootstrap(_)) {
        bail!(
            "a bootstrap token rotates nothing: give the cluster's own, from server/token below a server's data directory"
        );
    }
    let url = ServerUrl::parse(&flags.server).with_context(|| format!("--server: {:?}", flags.server))?;
    let wanted = wanted(flags)?;
    if let Some(wanted) = &wanted {
        server_secret(wanted.expose()).context(
            "the new token cannot be the secret of a cluster (a plain password that neither begins with K10 nor looks like a \
             bootstrap token can)",
        )?;
    }
    let address = Address {
        host: url.host().to_owned(),
        port: url.port(),
        shown: url.to_string(),
    };
    let clock = Arc::new(Clock::default());
    let ca = fetch_ca(&address, parsed.ca_hash.as_deref(), &clock).await?;
    let endpoint = Endpoint {
        host: address.host,
        port: address.port,
        tls: Some(trust::bundle(&ca, None, &clock)?),
    };
    let body = json!({ "newToken": wanted.as_ref().map_or("", Secret::expose) }).to_string();
    let request = Request::builder()
        .method(Method::PUT)
        .uri("/v1-k3s/token")
        .header(HOST, endpoint.authority())
        .header(AUTHORIZATION, parsed.authorization("server"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let answer = endpoint.ask(request, LIMIT).await;
    let answer = answer.with_context(|| format!("{} does not answer", flags.server))?;
    if !answer.head.status.is_success() {
        let status = status_of(answer.head.status.as_u16(), None, &answer.body);
        bail!("the server refused ({}): {}", status.code, status.message);
    }
    Ok(TEXT.to_owned())
}

const TEXT: &str = "\
WARNING: keep the old token: backups of the datastore that were made with it open with it only.
Token rotated, restart k3s servers with new token. It is in server/token below the data directory of the server that was
asked (/var/lib/rancher/k3s); that one has it already, but replace it in its flags and its configuration if it stands there.
";

/// Flag or variable, file, or what this machine's server has.
fn present(flags: &Rotate) -> anyhow::Result<Secret> {
    if let Some(token) = flags.token.clone().filter(|token| !token.expose().trim().is_empty()) {
        return Ok(token);
    }
    let usual = flags.data.path().join("server/token");
    let path = flags.token_file.as_deref().unwrap_or(&usual);
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the present token from {} (run this on a server as root, or give --token-file)",
            path.display()
        )
    });
    Ok(Secret::new(text?))
}

/// The new token; none asks for a random one.
fn wanted(flags: &Rotate) -> anyhow::Result<Option<Secret>> {
    let text = match flags.new_token_file.as_deref() {
        None => return Ok(flags.new_token.clone()),
        Some(path) if path == Path::new("-") => asked()?,
        Some(path) => fs::read_to_string(path).with_context(|| format!("--new-token-file {}", path.display()))?,
    };
    match text.trim() {
        // A file that is empty by mistake is not a wish for a random one.
        "" => bail!("the new token is empty; leave --new-token-file out for a random one"),
        text => Ok(Some(Secret::new(text))),
    }
}

/// One line of standard input; a person is asked, and does not see it.
fn asked() -> anyhow::Result<String> {
    use std::io::Read as _;
    let input = io::stdin();
    let quiet = match input.is_terminal() {
        true => {
            eprint!("New token (it is not shown): ");
            Some(Quiet::new(input)?)
        }
        false => None,
    };
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(LONGEST)
        .read_line(&mut line)
        .context("standard input")?;
    match quiet {
        Some(_) => typed(line),
        None => Ok(line),
    }
}

/// What a person typed. Keys that would have stopped the program are in it as characters.
fn typed(line: String) -> anyhow::Result<String> {
    match line.trim_end().chars().any(char::is_control) || line.ends_with(char::from(INTERRUPT)) {
        true => bail!("interrupted: the token stays as it is"),
        false => Ok(line),
    }
}

/// A terminal that does not show what is typed, until this is dropped. Ctrl-C ends the line instead of the program, which
/// would leave the terminal so.
struct Quiet<T: AsFd> {
    terminal: T,
    before: Termios,
}

impl<T: AsFd> Quiet<T> {
    fn new(terminal: T) -> anyhow::Result<Self> {
        let before = tcgetattr(&terminal).context("the terminal")?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
        if let Some(key) = silent.control_chars.get_mut(SpecialCharacterIndices::VEOL as usize) {
            *key = INTERRUPT;
        }
        tcsetattr(&terminal, SetArg::TCSANOW, &silent).context("the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl<T: AsFd> Drop for Quiet<T> {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
        eprintln!();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use nix::pty::openpty;

    use super::*;

    #[test]
    fn a_terminal_shows_what_is_typed_again_after_the_token_and_after_ctrl_c() {
        for (keys, expected) in [("new-token\n", Some("new-token\n")), ("half\x03", None)] {
            let pty = openpty(None, None).unwrap();
            let (mut person, terminal) = (File::from(pty.master), File::from(pty.slave));
            let flags = || tcgetattr(&terminal).unwrap().local_flags;
            let before = flags();
            assert!(before.contains(LocalFlags::ECHO | LocalFlags::ISIG));
            let quiet = Quiet::new(&terminal).unwrap();
            assert!(!flags().intersects(LocalFlags::ECHO | LocalFlags::ISIG));
            person.write_all(keys.as_bytes()).unwrap();
            let mut line = vec![0; 100];
            let size = io::Read::read(&mut &terminal, &mut line).unwrap();
            let line = String::from_utf8(line[..size].to_vec()).unwrap();
            assert_eq!(typed(line).ok().as_deref(), expected);
            drop(quiet);
            assert_eq!(flags(), before);
        }
        assert!(typed("to\x1aken\n".to_owned()).is_err(), "Ctrl-Z is no part of a token");
    }
}
