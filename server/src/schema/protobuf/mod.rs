//! Kubernetes protobuf bodies to JSON trees and back, by the schema table: no kind has code of its own here.
//!
//! `wire` knows bytes, `decode` and `encode` know types, `envelope` knows what stands around an object: the magic
//! number and `runtime.Unknown`, lists that are written item by item, frames of a watch. What comes out of [`decode`] is
//! what Go prints as JSON after it has read the same bytes; what [`encode`] writes is what Go writes, byte for byte.
//! The fixtures of Kubernetes v1.36.3 pin both (see `fixtures/SOURCE.md`).

mod decode;
mod encode;
mod envelope;
#[cfg(test)]
mod tests;
pub(super) mod wire;

pub use envelope::{List, decode, encode, watch_frame};

/// The type that "a JSON schema or something else" speaks of.
const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Why a protobuf body cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Not our envelope, or broken inside.
    #[error("malformed protobuf body: {0}")]
    Malformed(&'static str),
    /// Well-formed, of a kind this server does not know.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// `apps/v1`.
        api_version: String,
        /// `Deployment`.
        kind: String,
    },
}

/// Why an object cannot be written as protobuf.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// Custom resources, tables: answer in JSON.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// `apps/v1`.
        api_version: String,
        /// `Deployment`.
        kind: String,
    },
    /// The object does not fit its type: it was not checked.
    #[error("{0} does not fit its type")]
    Mistyped(&'static str),
}
