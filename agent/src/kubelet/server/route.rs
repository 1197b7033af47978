//! What a request to the HTTPS port asks for: method, path and query to [`Asked`]. Pure.
//!
//! Source: Kubernetes v1.36, `pkg/kubelet/server/server.go` (`InstallDefaultHandlers`, `InstallDebuggingHandlers`) and
//! `core/v1` `PodLogOptions`; the API server's side is `kubernetes-api` 22 and 23.

use jiff::Timestamp;

use crate::wire::{percent, time};

/// Containers and commands, ports and all: more than any client sends.
const MAX_PARAMETERS: usize = 1024;
const BROKEN: &str = "the request's percent encoding is broken";

/// A request, understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Asked {
    /// Whether the kubelet is well.
    Health,
    /// The pods of this node.
    Pods,
    /// What a container printed.
    Logs(Place, LogOptions),
    /// A command in a container.
    Exec(Place, Streams, Vec<String>),
    /// A container's own streams.
    Attach(Place, Streams),
    /// Ports of a pod. Which, each stream says for itself, so a list of them in the query means nothing here.
    PortForward(Place),
}

/// A container, or a pod if `container` is empty.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// The pod's uid, where it must be this one.
    pub uid: Option<String>,
    /// Container.
    pub container: String,
}

/// Which streams a command is joined by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// All through a terminal.
    pub tty: bool,
}

/// Which part of a log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LogOptions {
    /// Go on until the container has ended.
    pub follow: bool,
    /// The attempt before this one.
    pub previous: bool,
    /// Begin each line with its stamp.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail: Option<usize>,
    /// Only what is as young as that.
    pub since: Option<Since>,
    /// At most so many bytes.
    pub limit: Option<u64>,
    /// Only this stream.
    pub only: Option<&'static str>,
}

/// The age of the oldest line wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Since {
    /// So many seconds ago.
    Seconds(i64),
    /// An instant.
    Time(Timestamp),
}

impl Since {
    /// As an instant.
    pub fn instant(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Time(at) => at,
            Self::Seconds(seconds) => {
                Timestamp::from_second(now.as_second().saturating_sub(seconds)).unwrap_or(Timestamp::MIN)
            }
        }
    }
}

/// A request that is answered with an HTTP code and a sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The code.
    pub code: u16,
    /// The body.
    pub text: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// Understands a request.
///
/// # Errors
/// [`Refusal`]: what is wrong with it.
pub fn route(method: &str, path: &str, query: &str) -> Result<Asked, Refusal> {
    let segments: Option<Vec<String>> = path.split('/').skip(1).map(percent::decode).collect();
    let segments = segments.ok_or_else(|| Refusal::new(400, BROKEN))?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query = Query::parse(query)?;
    let place = |namespace: &str, pod: &str, uid: Option<&str>, container: &str| Place {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(ToOwned::to_owned),
        container: container.to_owned(),
    };
    let (reads, posts) = (method == "GET", method == "POST");
    let (allowed, asked) = match segments.as_slice() {
        ["healthz"] => (reads, Asked::Health),
        ["pods" | "runningpods"] | ["pods", ""] => (reads, Asked::Pods),
        ["containerLogs", namespace, pod, container] => {
            let place = place(namespace, pod, None, container);
            (reads, Asked::Logs(place, query.log_options()?))
        }
        ["exec", namespace, pod, container] => {
            let place = place(namespace, pod, None, container);
            (reads || posts, query.exec(place)?)
        }
        ["exec", namespace, pod, uid, container] => {
            let place = place(namespace, pod, Some(uid), container);
            (reads || posts, query.exec(place)?)
        }
        ["attach", namespace, pod, container] => {
            let place = place(namespace, pod, None, container);
            (reads || posts, Asked::Attach(place, query.streams()?))
        }
        ["attach", namespace, pod, uid, container] => {
            let place = place(namespace, pod, Some(uid), container);
            (reads || posts, Asked::Attach(place, query.streams()?))
        }
        ["portForward", namespace, pod] => {
            let place = place(namespace, pod, None, "");
            (reads || posts, Asked::PortForward(place))
        }
        ["portForward", namespace, pod, uid] => {
            let place = place(namespace, pod, Some(uid), "");
            (reads || posts, Asked::PortForward(place))
        }
        _ => return Err(Refusal::new(404, "404 page not found")),
    };
    match allowed {
        true => Ok(asked),
        false => Err(Refusal::new(405, format!("{method} is not allowed here"))),
    }
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let parsed: Option<Vec<_>> = pairs
            .take(MAX_PARAMETERS + 1)
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| Some((percent::decode_query(key)?, percent::decode_query(value)?)))
            .collect();
        match parsed {
            None => Err(Refusal::new(400, BROKEN)),
            Some(parsed) if parsed.len() > MAX_PARAMETERS => Err(Refusal::new(400, "too many parameters")),
            Some(parsed) => Ok(Self(parsed)),
        }
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let with_key = self.0.iter().filter(move |(name, _)| name == key);
        with_key.map(|(_, value)| value.as_str())
    }

    fn get<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.all(key).next().filter(|value| !value.is_empty())
    }

    /// A flag is off if it is not there, `0` or `false`. Source: apimachinery `Convert_Slice_string_To_bool`.
    fn flag(&self, key: &str) -> bool {
        let value = self.all(key).next();
        value.is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    fn number(&self, key: &str, least: i64) -> Result<Option<i64>, Refusal> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let number: i64 = text
            .parse()
            .map_err(|_| Refusal::new(400, format!("{key} is no number: {text:?}")))?;
        match number < least {
            true => Err(Refusal::new(422, format!("{key} must be at least {least}"))),
            false => Ok(Some(number)),
        }
    }

    fn log_options(&self) -> Result<LogOptions, Refusal> {
        // `tail` is what `tailLines` was called before there was an API of logs.
        let tail = match self.get("tail") {
            Some("all") => None,
            Some(_) => self.number("tail", 0)?,
            None => self.number("tailLines", 0)?,
        };
        let time = match self.get("sinceTime") {
            Some(text) => Some(
                time::parse(text)
                    .ok_or_else(|| Refusal::new(400, format!("sinceTime is no RFC 3339 time: {text:?}")))?,
            ),
            None => None,
        };
        let since = match (self.number("sinceSeconds", 1)?, time) {
            (Some(_), Some(_)) => {
                return Err(Refusal::new(422, "only one of sinceSeconds and sinceTime may be given"));
            }
            (Some(seconds), None) => Some(Since::Seconds(seconds)),
            (None, time) => time.map(Since::Time),
        };
        let only = match self.get("stream") {
            None | Some("All") => None,
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            Some(other) => {
                return Err(Refusal::new(
                    422,
                    format!("stream is All, Stdout or Stderr, not {other:?}"),
                ));
            }
        };
        Ok(LogOptions {
            follow: self.flag("follow"),
            previous: self.flag("previous"),
            timestamps: self.flag("timestamps"),
            tail: tail.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
            since,
            limit: self
                .number("limitBytes", 1)?
                .and_then(|bytes| u64::try_from(bytes).ok()),
            only,
        })
    }

    /// Source: cri-streaming `remotecommand.NewOptions`.
    fn streams(&self) -> Result<Streams, Refusal> {
        let tty = self.flag("tty");
        let streams = Streams {
            stdin: self.flag("input"),
            stdout: self.flag("output"),
            stderr: self.flag("error") && !tty,
            tty,
        };
        match streams.stdin || streams.stdout || streams.stderr {
            true => Ok(streams),
            false => Err(Refusal::new(
                400,
                "you must specify at least 1 of stdin, stdout, stderr",
            )),
        }
    }

    fn exec(&self, place: Place) -> Result<Asked, Refusal> {
        let command: Vec<String> = self.all("command").map(ToOwned::to_owned).collect();
        match command.is_empty() {
            true => Err(Refusal::new(
                400,
                "you must specify at least one command for the container",
            )),
            false => Ok(Asked::Exec(place, self.streams()?, command)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(uid: Option<&str>, container: &str) -> Place {
        Place {
            namespace: "ns".into(),
            pod: "web".into(),
            uid: uid.map(ToOwned::to_owned),
            container: container.into(),
        }
    }

    #[test]
    fn each_path_is_its_request() {
        let input = Streams {
            stdin: true,
            stdout: true,
            ..Streams::default()
        };
        let command = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (method, path, query, expected) in [
            ("GET", "/healthz", "", Asked::Health),
            ("GET", "/pods", "", Asked::Pods),
            (
                "GET",
                "/containerLogs/ns/web/c",
                "",
                Asked::Logs(place(None, "c"), LogOptions::default()),
            ),
            (
                "GET",
                "/exec/ns/web/c",
                "input=1&output=1&command=sh&command=-c&command=a%20%2B+b",
                Asked::Exec(place(None, "c"), input, command(&["sh", "-c", "a + b"])),
            ),
            (
                "POST",
                "/exec/ns/web/uid/c",
                "output=1&input=1&command=",
                Asked::Exec(place(Some("uid"), "c"), input, command(&[""])),
            ),
            (
                "POST",
                "/attach/ns/web/c",
                "input=1&output=1&error=0",
                Asked::Attach(place(None, "c"), input),
            ),
            (
                "GET",
                "/portForward/ns/web",
                "port=80,x&port=70000",
                Asked::PortForward(place(None, "")),
            ),
        ] {
            assert_eq!(route(method, path, query), Ok(expected), "{method} {path}?{query}");
        }
    }

    #[test]
    fn a_terminal_has_no_standard_error() {
        let asked = route("GET", "/exec/ns/web/c", "output=1&error=1&tty=1&command=sh").unwrap();
        let Asked::Exec(_, streams, _) = asked else {
            panic!("{asked:?}")
        };
        assert!(streams.tty && streams.stdout && !streams.stderr && !streams.stdin);
    }

    #[test]
    fn logs_are_cut_as_asked() {
        let logs = |query: &str| match route("GET", "/containerLogs/ns/web/c", query) {
            Ok(Asked::Logs(_, options)) => Ok(options),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal.code),
        };
        let time: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(
            logs("follow=true&previous=false&timestamps=1&tailLines=5&limitBytes=10&sinceSeconds=3&stream=Stderr"),
            Ok(LogOptions {
                follow: true,
                previous: false,
                timestamps: true,
                tail: Some(5),
                since: Some(Since::Seconds(3)),
                limit: Some(10),
                only: Some("stderr"),
            })
        );
        assert_eq!(logs("tail=all").unwrap().tail, None);
        assert_eq!(logs("tail=3").unwrap().tail, Some(3));
        assert_eq!(
            logs("sinceTime=2026-01-01T01%3A00%3A00%2B01%3A00").unwrap().since,
            Some(Since::Time(time))
        );
        for (query, code) in [
            ("tailLines=x", 400),
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("sinceSeconds=0", 422),
            ("sinceTime=yesterday", 400),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422),
            ("stream=both", 422),
        ] {
            assert_eq!(logs(query), Err(code), "{query}");
        }
        let far = Since::Seconds(i64::MAX).instant(time);
        assert!(far < Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        for (method, path, query, code) in [
            ("GET", "/", "", 404),
            ("GET", "/metrics", "", 404),
            ("GET", "/containerLogs/ns/web", "", 404),
            ("POST", "/containerLogs/ns/web/c", "", 405),
            ("DELETE", "/exec/ns/web/c", "output=1&command=x", 405),
            ("GET", "/exec/ns/web/c", "output=1", 400),
            ("GET", "/exec/ns/web/c", "command=x", 400),
            ("GET", "/exec/ns/web/c%", "output=1&command=x", 400),
            ("GET", "/exec/ns/web/c", "output=1&command=%ff", 400),
        ] {
            let refused = route(method, path, query).map_err(|refusal| refusal.code);
            assert_eq!(refused, Err(code), "{method} {path}?{query}");
        }
        let endless = "command=x&".repeat(MAX_PARAMETERS + 1);
        assert!(route("GET", "/exec/ns/web/c", &endless).is_err());
    }

    proptest! {
        #[test]
        fn no_request_is_too_strange_to_be_refused(path in "[/a-zA-Z%0-9+]{0,40}", query in "[a-z=&%+0-9é]{0,60}") {
            let _ = route("GET", &path, &query);
            let _ = route("GET", &format!("/exec/a/b/{path}"), &query);
        }
    }
}
