//! `k3s token rotate`: asks a server for another token of the cluster. Source: K3s v1.36 `pkg/cli/token` (`Rotate`).
//!
//! The server does it (`join::rotation`); what is here finds the present token, proves the server by the authority that it
//! pins, and reads the new token from where nobody else sees it.

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _};
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
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use crate::config::admin::Rotate;

/// The datastore may be far away; K3s' server has ten seconds for it.
const LIMIT: Duration = Duration::from_secs(30);
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
    let _quiet = match input.is_terminal() {
        true => {
            eprint!("New token (it is not shown): ");
            Some(Quiet::new()?)
        }
        false => None,
    };
    let mut line = String::new();
    input
        .lock()
        .take(LONGEST)
        .read_line(&mut line)
        .context("standard input")?;
    Ok(line)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet(Termios);

impl Quiet {
    fn new() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("the terminal")?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &silent).context("the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
        eprintln!();
    }
}
