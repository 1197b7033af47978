//! `k3s token`: bootstrap tokens, made, listed and deleted; `rotate.rs` has the cluster's own. Source: K3s v1.36 `pkg/cli/token`.

use agent::wire::join::ca_hash;
use agent::wire::object::list;
use agent::wire::time;
use agent::wire::token::Bootstrap;
use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use super::{duration, failed, kubeconfig, rotate, table};
use crate::config::admin::{Output, Token, TokenVerb};
use crate::kinds::bootstrap_token::{self, BootstrapToken, PREFIX};

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";

fn random() -> anyhow::Result<Bootstrap> {
    let mut bytes = [0; 22];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow!("the system has no randomness"))?;
    Ok(bootstrap_token::from_random(bytes))
}

/// Runs a verb; the answer is to be printed.
///
/// # Errors
/// What is wrong, and what to do.
pub async fn run(command: Token) -> anyhow::Result<String> {
    // Not opened for all of them: a machine that only makes up a token may have no kubeconfig.
    let open = || kubeconfig::open(&command.cluster.kubeconfig);
    match command.verb {
        TokenVerb::Generate => Ok(format!("{}\n", random()?.text().expose())),
        TokenVerb::Rotate(flags) => rotate::run(&flags).await,
        TokenVerb::Create {
            token,
            description,
            groups,
            ttl,
            usages,
        } => {
            let cluster = open()?;
            let token = match token {
                Some(text) => Bootstrap::parse(&text)
                    .context("a bootstrap token is six characters, a dot, and sixteen, of a-z and 0-9")?,
                None => random()?,
            };
            let wanted = wanted(token, description, groups, &ttl, usages, Timestamp::now())?;
            let made = cluster.api.create(SECRETS, &wanted.secret()).await;
            made.map_err(|error| failed("cannot make the token", &error))?;
            Ok(format!("{}\n", wanted.token.secure(&ca_hash(&cluster.ca)).expose()))
        }
        TokenVerb::List { output } => {
            let cluster = open()?;
            let path = format!(
                "{SECRETS}?fieldSelector=type%3D{}",
                bootstrap_token::TYPE.replace('/', "%2F")
            );
            let found = cluster.api.get(&path).await;
            let found = found.map_err(|error| failed("cannot list the tokens", &error))?;
            let all: Vec<_> = list(&found, &["items"])
                .iter()
                .filter_map(BootstrapToken::read)
                .collect();
            Ok(shown(&all, output, Timestamp::now()))
        }
        TokenVerb::Delete { tokens } => {
            let cluster = open()?;
            let mut text = String::new();
            for token in tokens {
                let id = id(&token)?;
                let gone = cluster.api.delete(&format!("{SECRETS}/{PREFIX}{id}"), None).await;
                gone.map_err(|error| failed(&format!("cannot delete bootstrap token {id}"), &error))?;
                text.push_str(&format!("bootstrap token {id} deleted\n"));
            }
            Ok(text)
        }
    }
}

/// Checks what was given.
fn wanted(
    token: Bootstrap,
    description: String,
    groups: Vec<String>,
    ttl: &str,
    usages: Vec<String>,
    now: Timestamp,
) -> anyhow::Result<BootstrapToken> {
    let ttl = duration::parse(ttl).context("--ttl")?;
    if let Some(group) = groups.iter().find(|group| !bootstrap_token::is_group(group)) {
        bail!("--groups: {group:?} has to begin with system:bootstrappers: and go on in a-z, 0-9, '-' and ':'");
    }
    if let Some(usage) = usages.iter().find(|usage| !bootstrap_token::is_usage(usage)) {
        bail!("--usages: {usage:?} is none; there are signing and authentication");
    }
    let end = now.checked_add(ttl).context("--ttl: too long")?;
    Ok(BootstrapToken {
        token,
        description,
        expires: (!ttl.is_zero()).then_some(end),
        usages,
        groups,
    })
}

/// The id of a token that may be whole, or pin an authority.
fn id(text: &str) -> anyhow::Result<String> {
    let bare = text.split_once("::").map_or(text, |(_, rest)| rest);
    let id = Bootstrap::parse(bare).map_or_else(|| bare.to_owned(), |token| token.id);
    let shaped = Bootstrap::parse(&format!("{id}.{}", "0".repeat(16))).is_some();
    // What was given may be a secret: it is not repeated.
    shaped
        .then_some(id)
        .context("not a bootstrap token nor the id of one, such as abcdef")
}

fn shown(all: &[BootstrapToken], output: Output, now: Timestamp) -> String {
    let end = |token: &BootstrapToken| token.expires.map(time::seconds);
    if output == Output::Json {
        let one = |token: &BootstrapToken| {
            json!({ "id": token.token.id, "expires": end(token), "expired": token.is_over(now), "usages": token.usages,
                "groups": token.groups, "description": token.description })
        };
        return format!("{:#}\n", Value::from_iter(all.iter().map(one)));
    }
    let row = |token: &BootstrapToken| {
        let left = token
            .expires
            .map_or("<forever>".to_owned(), |end| match token.is_over(now) {
                true => "<expired>".to_owned(),
                false => time::age(end.as_second().saturating_sub(now.as_second())),
            });
        [
            token.token.id.clone(),
            left,
            end(token).unwrap_or_else(|| "<never>".to_owned()),
            token.usages.join(","),
            match token.description.is_empty() {
                true => "<none>".to_owned(),
                false => token.description.clone(),
            },
            token.groups.join(","),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    table::text(
        ["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-27T00:00:00Z".parse().unwrap()
    }

    fn make(groups: &str, ttl: &str, usages: &str) -> anyhow::Result<BootstrapToken> {
        let token = Bootstrap::parse("abcdef.0123456789abcdef").unwrap();
        let many = |text: &str| text.split(',').map(str::to_owned).collect();
        wanted(token, String::new(), many(groups), ttl, many(usages), now())
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_flag() {
        let good = "system:bootstrappers:a";
        for (groups, ttl, usages, hint) in [
            ("system:masters", "24h", "signing", "--groups"),
            (good, "yesterday", "signing", "--ttl"),
            (good, "24h", "everything", "--usages"),
        ] {
            let error = make(groups, ttl, usages).unwrap_err();
            assert!(format!("{error:#}").contains(hint), "{error:#}");
        }
        assert_eq!(make(good, "0", "signing").unwrap().expires, None);
        let day = make(good, "24h", "signing").unwrap().expires;
        assert_eq!(day.map(time::seconds).as_deref(), Some("2026-11-28T00:00:00Z"));
    }

    #[test]
    fn a_token_is_known_by_its_id_however_it_is_written() {
        for text in ["abcdef", "abcdef.0123456789abcdef", "K10aa::abcdef.0123456789abcdef"] {
            assert_eq!(id(text).unwrap(), "abcdef");
        }
        for text in ["", "abc", "../x", "ABCDEF"] {
            let error = id(text).unwrap_err().to_string();
            assert!(error.contains("nor the id of one"), "{error}");
        }
    }

    #[test]
    fn a_list_shows_no_secret() {
        let mut token = make("system:bootstrappers:a", "2h", "signing").unwrap();
        token.description = "roof".to_owned();
        let text = shown(&[token.clone()], Output::Text, now());
        assert!(
            text.contains("abcdef   120m   2026-11-27T02:00:00Z   signing   roof"),
            "{text}"
        );
        let json = shown(&[token], Output::Json, now());
        for text in [text, json] {
            assert!(text.contains("abcdef") && !text.contains("0123456789abcdef"), "{text}");
        }
    }
}
