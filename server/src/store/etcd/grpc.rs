//! gRPC as bytes: message frames, statuses, and what a status of etcd's means. Pure.
//!
//! Source: gRPC over HTTP/2 (`grpc/doc/PROTOCOL-HTTP2.md`); etcd v3.4, `etcdserver/api/v3rpc/rpctypes/error.go`.

use agent::wire::percent;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hyper::HeaderMap;
use prost::Message;

/// The longest message taken. A page of a list is sized to be far below it ([`super::read`]), and one answer of a watch
/// comes in pieces of at most the server's request limit; an event may be as long as the largest request (1.5 MiB by
/// default, and operators raise that).
pub const MAX_MESSAGE: usize = 256 << 20;

/// One byte that says "not compressed", four of length.
const PREFIX: usize = 5;

/// A message as it goes into a body.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows as needed: encoding cannot fail.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// Cuts a body into messages.
#[derive(Debug, Default)]
pub struct Frames(BytesMut);

/// What came is no gRPC, or too much of it.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// Nobody was offered compression.
    #[error("a compressed message, which was not offered")]
    Compressed,
    /// More than the bound.
    #[error("a message of {0} bytes; at most {MAX_MESSAGE} are taken")]
    TooLong(usize),
}

impl Frames {
    /// Takes in the next piece of the body.
    pub fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// [`FrameError`]; the body is of no use then.
    pub fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some((prefix, rest)) = self.0.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(FrameError::Compressed);
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLong(length));
        }
        if rest.len() < length {
            self.0.reserve(length - rest.len());
            return Ok(None);
        }
        self.0.advance(PREFIX);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

/// How a call ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Zero: well.
    pub code: u32,
    /// For people.
    pub message: String,
}

/// The codes that are told apart here.
mod code {
    pub const OK: u32 = 0;
    pub const UNKNOWN: u32 = 2;
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const NOT_FOUND: u32 = 5;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const OUT_OF_RANGE: u32 = 11;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const UNAUTHENTICATED: u32 = 16;
}

/// What a status other than "well" means for who asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// The revision is compacted.
    Compacted,
    /// The revision is yet to come.
    Future,
    /// No room left (quota or disk).
    Full,
    /// More than a request may have.
    TooLarge,
    /// Not carried out: this member has no leader, or too much to do. Another one, or later.
    Elsewhere,
    /// Not carried out: the token is no longer good.
    StaleToken,
    /// Not carried out: authentication is not switched on.
    NoAuth,
    /// Not carried out: the lease is gone.
    NoLease,
    /// Not carried out, and will not be next time either.
    Refused,
    /// It may have been carried out, or may yet be.
    Unclear,
}

impl Status {
    /// The status in trailers, or in the headers of an answer without a body; `None` if there is none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok();
        let message = headers.get("grpc-message").and_then(|value| value.to_str().ok());
        let message = message.unwrap_or_default();
        Some(Self {
            code: code.unwrap_or(code::UNKNOWN),
            message: percent::decode(message).unwrap_or_else(|| message.to_owned()),
        })
    }

    /// As if a call had ended so that was refused otherwise.
    pub fn refused(message: String) -> Self {
        Self {
            code: code::FAILED_PRECONDITION,
            message,
        }
    }

    /// Whether the call went well.
    pub fn is_ok(&self) -> bool {
        self.code == code::OK
    }

    /// What it means. Whatever is not known to have been turned away before it was carried out is
    /// [`Meaning::Unclear`].
    pub fn meaning(&self) -> Meaning {
        let says = |words: &str| self.message.contains(words);
        match self.code {
            code::OUT_OF_RANGE if says("has been compacted") => Meaning::Compacted,
            code::OUT_OF_RANGE if says("is a future revision") => Meaning::Future,
            code::RESOURCE_EXHAUSTED if says("space exceeded") => Meaning::Full,
            code::RESOURCE_EXHAUSTED if says("larger than max") => Meaning::TooLarge,
            code::RESOURCE_EXHAUSTED if says("too many requests") => Meaning::Elsewhere,
            code::INVALID_ARGUMENT if says("request is too large") => Meaning::TooLarge,
            code::INVALID_ARGUMENT if says("auth store is old") => Meaning::StaleToken,
            // Authentication was switched on since.
            code::INVALID_ARGUMENT if says("user name is empty") => Meaning::StaleToken,
            code::UNAUTHENTICATED if says("invalid auth token") => Meaning::StaleToken,
            code::FAILED_PRECONDITION if says("authentication is not enabled") => Meaning::NoAuth,
            code::NOT_FOUND if says("lease not found") => Meaning::NoLease,
            // Turned away by the interceptor, because the call asks for a leader.
            _ if says("etcdserver: no leader") => Meaning::Elsewhere,
            code::INVALID_ARGUMENT
            | code::NOT_FOUND
            | code::PERMISSION_DENIED
            | code::FAILED_PRECONDITION
            | code::OUT_OF_RANGE
            | code::UNIMPLEMENTED
            | code::UNAUTHENTICATED => Meaning::Refused,
            _ => Meaning::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::etcd::message::KeyValue;

    fn status(code: u32, message: &str) -> Status {
        Status {
            code,
            message: message.to_owned(),
        }
    }

    proptest! {
        #[test]
        fn messages_are_found_again_however_the_body_is_cut(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            cuts in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let message = |value: &Vec<u8>| KeyValue { value: value.clone().into(), ..KeyValue::default() };
            let body: Vec<u8> = values.iter().flat_map(|value| frame(&message(value))).collect();
            let (mut frames, mut found, mut rest) = (Frames::default(), Vec::new(), body.as_slice());
            for cut in cuts.iter().cycle() {
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                frames.push(piece);
                while let Some(message) = frames.next().unwrap() {
                    found.push(KeyValue::decode(message).unwrap().value.to_vec());
                }
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, values);
        }
    }

    #[test]
    fn what_is_no_message_of_ours_is_refused() {
        for (bytes, error) in [
            (b"\x01\0\0\0\x01x".as_slice(), FrameError::Compressed),
            (b"\0\xff\xff\xff\xff", FrameError::TooLong(0xffff_ffff)),
        ] {
            let mut frames = Frames::default();
            frames.push(bytes);
            assert_eq!(frames.next(), Err(error));
        }
    }

    #[test]
    fn a_status_is_read_from_trailers() {
        let mut trailers = HeaderMap::new();
        assert_eq!(Status::of(&trailers), None);
        trailers.insert("grpc-status", "14".parse().unwrap());
        trailers.insert("grpc-message", "50%25 of it, caf%C3%A9".parse().unwrap());
        assert_eq!(Status::of(&trailers), Some(status(14, "50% of it, café")));
    }

    #[test]
    fn only_what_was_turned_away_for_sure_counts_as_not_done() {
        for (code, message, meaning) in [
            (14, "etcdserver: request timed out", Meaning::Unclear),
            (
                14,
                "etcdserver: request timed out, possibly due to previous leader failure",
                Meaning::Unclear,
            ),
            (14, "etcdserver: leader changed", Meaning::Unclear),
            (14, "etcdserver: server stopped", Meaning::Unclear),
            (4, "context deadline exceeded", Meaning::Unclear),
            (13, "whatever", Meaning::Unclear),
            (14, "etcdserver: no leader", Meaning::Elsewhere),
            (8, "etcdserver: too many requests", Meaning::Elsewhere),
            (8, "etcdserver: mvcc: database space exceeded", Meaning::Full),
            (
                8,
                "grpc: received message larger than max (3000000 vs. 2097152)",
                Meaning::TooLarge,
            ),
            (3, "etcdserver: request is too large", Meaning::TooLarge),
            (
                11,
                "etcdserver: mvcc: required revision has been compacted",
                Meaning::Compacted,
            ),
            (
                11,
                "etcdserver: mvcc: required revision is a future revision",
                Meaning::Future,
            ),
            (16, "etcdserver: invalid auth token", Meaning::StaleToken),
            (3, "etcdserver: revision of auth store is old", Meaning::StaleToken),
            (9, "etcdserver: authentication is not enabled", Meaning::NoAuth),
            (5, "etcdserver: requested lease not found", Meaning::NoLease),
            (7, "etcdserver: permission denied", Meaning::Refused),
            (3, "etcdserver: user name is empty", Meaning::StaleToken),
        ] {
            assert_eq!(status(code, message).meaning(), meaning, "{message}");
        }
    }
}
