//! The channels of a command's websocket: `v5.channel.k8s.io` and `v4.channel.k8s.io`. Pure.
//!
//! A binary message is a channel's number and bytes. Source: Kubernetes v1.36,
//! `apimachinery/pkg/util/remotecommand/constants.go` and `client-go/tools/remotecommand/v5.go`; `kubernetes-api` 23.2.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;

use crate::wire::status::{Cause, Details, Reason, Status};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Which of the protocols is spoken. They differ in that version 5 can say that input has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// `v5.channel.k8s.io`.
    V5,
    /// `v4.channel.k8s.io`.
    V4,
}

impl Protocol {
    /// The best of those offered, as a client lists them in `Sec-WebSocket-Protocol`.
    pub fn choose(offered: &str) -> Option<Self> {
        let offers = |one: Self| offered.split(',').any(|name| name.trim() == one.name());
        [Self::V5, Self::V4].into_iter().find(|one| offers(*one))
    }

    /// As it is negotiated.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
        }
    }
}

/// What a client says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Heard {
    /// Bytes for standard input.
    Input(Bytes),
    /// There will be no more of them.
    InputEnd,
    /// The terminal has so many columns and rows now.
    Resize(u16, u16),
    /// Nothing that means anything here.
    Nothing,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// From standard output.
    Output(Bytes),
    /// From standard error.
    Error(Bytes),
    /// How it ended. Nothing comes after it.
    Status(Box<Status>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Size {
    width: u16,
    height: u16,
}

/// Understands a message. What no client of a later version need mean is passed over.
pub fn hear(protocol: Protocol, message: &Bytes) -> Heard {
    let rest = message.slice(1.min(message.len())..);
    match (message.first(), protocol) {
        (Some(&STDIN), _) if !rest.is_empty() => Heard::Input(rest),
        (Some(&RESIZE), _) => resize(&rest),
        (Some(&CLOSE), Protocol::V5) if rest.first() == Some(&STDIN) => Heard::InputEnd,
        _ => Heard::Nothing,
    }
}

/// A size that is JSON, `{"Width":80,"Height":24}`.
pub fn resize(json: &[u8]) -> Heard {
    match serde_json::from_slice::<Size>(json) {
        Ok(size) if size.width > 0 && size.height > 0 => Heard::Resize(size.width, size.height),
        _ => Heard::Nothing,
    }
}

/// A message.
pub fn say(said: &Said) -> Bytes {
    match said {
        Said::Output(bytes) => message(STDOUT, bytes),
        Said::Error(bytes) => message(STDERR, bytes),
        Said::Status(status) => message(ERROR, &serde_json::to_vec(status).unwrap_or_default()),
    }
}

fn message(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    message.freeze()
}

/// How a command ended.
///
/// Source: Kubernetes v1.36, `cri-streaming/pkg/streaming/remotecommand/exec.go` (`ServeExec`).
pub fn exit(code: i32) -> Status {
    if code == 0 {
        return success();
    }
    let cause = Cause {
        reason: "ExitCode".into(),
        message: code.to_string(),
        field: String::new(),
    };
    let details = Details {
        causes: vec![cause],
        ..Details::default()
    };
    Status {
        status: "Failure".into(),
        reason: "NonZeroExitCode".into(),
        message: format!("command terminated with non-zero exit code: exit status {code}"),
        details: Some(Box::new(details)),
        ..Status::default()
    }
}

/// It ended, or was left, as it should.
pub fn success() -> Status {
    Status {
        status: "Success".into(),
        ..Status::default()
    }
}

/// It could not be run or joined.
pub fn failure(what: &str, why: &str) -> Status {
    let message = format!("Internal error occurred: error {what} container: {why}");
    Status::failure(Reason::InternalError, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_protocol_that_both_know_is_spoken() {
        for (offered, expected) in [
            ("v5.channel.k8s.io", Some(Protocol::V5)),
            ("v4.channel.k8s.io, v5.channel.k8s.io", Some(Protocol::V5)),
            ("base64.channel.k8s.io,v4.channel.k8s.io", Some(Protocol::V4)),
            ("v6.channel.k8s.io", None),
            ("", None),
        ] {
            assert_eq!(Protocol::choose(offered), expected, "{offered}");
        }
    }

    #[test]
    fn messages_are_heard_by_their_channel() {
        let v5 = |bytes: &[u8]| hear(Protocol::V5, &Bytes::copy_from_slice(bytes));
        assert_eq!(v5(b"\0hello"), Heard::Input(Bytes::from_static(b"hello")));
        assert_eq!(v5(b"\x04{\"Width\":97,\"Height\":31}"), Heard::Resize(97, 31));
        assert_eq!(v5(b"\xff\0"), Heard::InputEnd);
        assert_eq!(hear(Protocol::V4, &Bytes::from_static(b"\xff\0")), Heard::Nothing);
        for odd in [
            &b""[..],
            b"\0",
            b"\x01out",
            b"\x04{}",
            b"\x04{\"Width\":70000,\"Height\":1}",
            b"\x04nonsense",
            b"\xff\x01",
            b"\xff",
            b"\x09x",
        ] {
            assert_eq!(v5(odd), Heard::Nothing, "{odd:?}");
        }
    }

    #[test]
    fn an_end_is_told_as_kubectl_reads_it() {
        let text = |status: Status| String::from_utf8(say(&Said::Status(Box::new(status))).to_vec()).unwrap();
        let success = text(exit(0));
        assert!(
            success.starts_with('\x03') && success.contains("\"status\":\"Success\""),
            "{success}"
        );
        let failed = text(exit(3));
        for part in ["NonZeroExitCode", "{\"reason\":\"ExitCode\",\"message\":\"3\"}"] {
            assert!(failed.contains(part), "{failed}");
        }
        assert_eq!(
            say(&Said::Output(Bytes::from_static(b"x"))),
            Bytes::from_static(b"\x01x")
        );
        assert_eq!(say(&Said::Error(Bytes::new())), Bytes::from_static(b"\x02"));
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = hear(Protocol::V5, &Bytes::from(bytes));
        }
    }
}
