//! Where etcd is, as an operator writes it, and which of its members to ask next. Pure.
//!
//! `https://[user:password@]host:port[,https://host:port…]`, with a CA, certificate and key from files of their own
//! (K3s: `--datastore-endpoint`, `--datastore-cafile`, …). Any member serves every request: one that is not the leader
//! passes it on. So one is asked as long as it answers.

use std::fmt;
use std::time::{Duration, Instant};

use agent::config::Secret;
use agent::wire::percent;

/// More would be no cluster of etcd's (it recommends seven at most).
const MOST: usize = 32;
/// A member that failed is left alone for so long at first, and for so long at last.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_LONGEST: Duration = Duration::from_secs(5);

/// A member's address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Name or address, without brackets.
    pub host: String,
    /// 2379 if it was not said.
    pub port: u16,
    /// `https`.
    pub tls: bool,
}

/// What an operator wrote.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoints {
    /// At least one, in his order.
    pub list: Vec<Endpoint>,
    /// As whom to log in: name and password.
    pub user: Option<(String, Secret)>,
}

/// What cannot be read. Shows no password: it says nothing of the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EndpointError {
    /// Neither `http://` nor `https://`.
    #[error("an etcd endpoint begins with http:// or https://, each of a list of them too")]
    Scheme,
    /// No host, no port, or more than those.
    #[error("an etcd endpoint is http[s]://[user:password@]host[:port]; special characters of a password as %XX")]
    Form,
    /// Two members, two users.
    #[error("all etcd endpoints must name the same user and password, or only one of them any")]
    Users,
    /// More than [`MOST`].
    #[error("more than {MOST} etcd endpoints")]
    TooMany,
}

impl Endpoint {
    /// `host:port`.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// Reads a comma list of endpoints.
///
/// # Errors
/// [`EndpointError`].
pub fn parse(text: &str) -> Result<Endpoints, EndpointError> {
    let mut endpoints = Endpoints {
        list: Vec::new(),
        user: None,
    };
    for one in text.split(',').map(str::trim) {
        let (endpoint, user) = parse_one(one)?;
        match (&endpoints.user, user) {
            (Some(known), Some(user)) if *known != user => return Err(EndpointError::Users),
            (None, Some(user)) => endpoints.user = Some(user),
            (Some(_), Some(_)) | (_, None) => {}
        }
        if !endpoints.list.contains(&endpoint) {
            endpoints.list.push(endpoint);
        }
    }
    match endpoints.list.len() > MOST {
        true => Err(EndpointError::TooMany),
        false => Ok(endpoints),
    }
}

type User = (String, Secret);

fn parse_one(text: &str) -> Result<(Endpoint, Option<User>), EndpointError> {
    let plain = text.strip_prefix("http://").map(|rest| (rest, false));
    let tls = text.strip_prefix("https://").map(|rest| (rest, true));
    let (rest, tls) = plain.or(tls).ok_or(EndpointError::Scheme)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(parse_user(user)?), place),
        None => (None, rest),
    };
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| EndpointError::Form)?),
        Some(_) | None => (place, 2379),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    let valid = match bracketed {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(is_host),
    };
    if !valid || port == 0 {
        return Err(EndpointError::Form);
    }
    let host = bracketed.unwrap_or(host).to_owned();
    Ok((Endpoint { host, port, tls }, user))
}

fn parse_user(text: &str) -> Result<User, EndpointError> {
    let (name, password) = text.split_once(':').ok_or(EndpointError::Form)?;
    let decoded = |text: &str| percent::decode(text).filter(|text| !text.is_empty());
    let name = decoded(name).ok_or(EndpointError::Form)?;
    let password = decoded(password).ok_or(EndpointError::Form)?;
    Ok((name, Secret::new(password)))
}

/// Which member next: the one that works, else the one that rested longest.
#[derive(Clone, Debug)]
pub struct Choice {
    members: Vec<Member>,
    current: usize,
}

#[derive(Clone, Debug, Default)]
struct Member {
    failures: u32,
    /// Not before; `None`: at once.
    rests_until: Option<Instant>,
}

impl Choice {
    /// Of so many members, none tried yet.
    pub fn new(members: usize) -> Self {
        Self {
            members: vec![Member::default(); members.max(1)],
            current: 0,
        }
    }

    /// The number of the member to ask, and how long to wait before.
    pub fn next(&mut self, now: Instant) -> (usize, Duration) {
        let count = self.members.len();
        let ahead = |number: usize| (number + count - self.current) % count;
        let best = self.members.iter().enumerate().min_by_key(|(number, member)| {
            let wait = member
                .rests_until
                .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
            (wait, ahead(*number))
        });
        let (number, wait) = best.map_or((0, Duration::ZERO), |(number, member)| {
            (
                number,
                member
                    .rests_until
                    .map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
            )
        });
        self.current = number;
        (number, wait)
    }

    /// It answered.
    pub fn works(&mut self, number: usize) {
        if let Some(member) = self.members.get_mut(number) {
            *member = Member::default();
        }
    }

    /// It did not, or cannot serve now.
    pub fn failed(&mut self, number: usize, now: Instant) {
        // Among equals, the next one.
        self.current = (number + 1) % self.members.len();
        if let Some(member) = self.members.get_mut(number) {
            let rest = REST_FIRST
                .saturating_mul(2_u32.saturating_pow(member.failures))
                .min(REST_LONGEST);
            member.failures = member.failures.saturating_add(1);
            member.rests_until = now.checked_add(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: &str, port: u16, tls: bool) -> Endpoint {
        Endpoint {
            host: host.to_owned(),
            port,
            tls,
        }
    }

    #[test]
    fn endpoints_are_read_as_operators_write_them() {
        let user = Some(("root".to_owned(), Secret::new("p@ss:w,rd")));
        for (text, list, user) in [
            ("http://localhost:2379", vec![endpoint("localhost", 2379, false)], None),
            ("https://etcd", vec![endpoint("etcd", 2379, true)], None),
            ("https://[fd00::1]:1/", vec![endpoint("fd00::1", 1, true)], None),
            (
                "https://root:p%40ss:w%2Crd@a:1, https://b:2,https://a:1",
                vec![endpoint("a", 1, true), endpoint("b", 2, true)],
                user,
            ),
        ] {
            assert_eq!(parse(text), Ok(Endpoints { list, user }), "{text}");
        }
        assert_eq!(endpoint("fd00::1", 1, true).to_string(), "https://[fd00::1]:1");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_without_a_word_of_it() {
        for (text, error) in [
            ("", EndpointError::Scheme),
            ("localhost:2379", EndpointError::Scheme),
            ("http://a,b", EndpointError::Scheme),
            ("http://", EndpointError::Form),
            ("http://a:0", EndpointError::Form),
            ("http://a:x", EndpointError::Form),
            ("http://a/path", EndpointError::Form),
            ("http://a?b=c", EndpointError::Form),
            ("http://user@a", EndpointError::Form),
            ("http://user:@a", EndpointError::Form),
            ("http://[::1", EndpointError::Form),
            ("http://u:secret@a,http://u:other@b", EndpointError::Users),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        assert!(!format!("{:?}", parse("http://u:secret@a")).contains("secret"));
    }

    #[test]
    fn the_member_that_works_is_kept_and_one_that_fails_rests() {
        let (mut choice, now) = (Choice::new(3), Instant::now());
        assert_eq!(choice.next(now), (0, Duration::ZERO));
        choice.works(0);
        assert_eq!(choice.next(now), (0, Duration::ZERO));
        choice.failed(0, now);
        assert_eq!(choice.next(now), (1, Duration::ZERO));
        choice.failed(1, now);
        assert_eq!(choice.next(now), (2, Duration::ZERO));
        choice.works(2);
        assert_eq!(
            choice.next(now + REST_LONGEST),
            (2, Duration::ZERO),
            "nobody goes back for no reason"
        );
    }

    #[test]
    fn when_all_fail_each_is_tried_again_ever_less_often() {
        let (mut choice, mut now) = (Choice::new(2), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..20 {
            let (number, wait) = choice.next(now);
            now += wait;
            waits.push((number, wait));
            choice.failed(number, now);
        }
        assert_eq!(waits[..2], [(0, Duration::ZERO), (1, Duration::ZERO)]);
        assert_eq!(waits[2], (0, REST_FIRST));
        assert!(waits.iter().all(|(_, wait)| *wait <= REST_LONGEST));
        assert_eq!(waits.iter().filter(|(number, _)| *number == 0).count(), 10, "by turns");
    }
}
