//! The only way in: who asks → may they → admission → the registry's pipeline. Everyone enters here, over HTTP or in
//! process: controllers, scheduler and the server's own parts too, as themselves.

mod api;
mod client;

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::units::Revision;
use agent::wire::status::Status;
use bytes::Bytes;
use serde_json::Value;

use crate::cache::{Filter, From, Page};
use crate::registry::resource::Resource;

pub use api::{Api, Pipeline};
pub use client::{Client, What};

/// Who is asking.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// `system:admin`.
    pub name: String,
    /// `system:masters`.
    pub groups: Vec<String>,
    /// Empty unless the authenticator knows one.
    pub uid: String,
    /// Further facts, such as the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A part of the control plane: name and groups.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        Self {
            name: name.to_owned(),
            groups,
            ..Self::default()
        }
    }
}

/// What a call is about.
#[derive(Clone)]
pub struct Target {
    /// The row.
    pub resource: Arc<Resource>,
    /// `None`: cluster-scoped, or all namespaces.
    pub namespace: Option<String>,
    /// `None`: the collection.
    pub name: Option<String>,
    /// `status`, `scale`, `binding`, …
    pub subresource: Option<String>,
}

/// How strictly a body is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FieldValidation {
    /// Unknown fields are dropped silently.
    Ignore,
    /// Dropped with a warning.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

/// Parameters of a write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Everything but the write.
    pub dry_run: bool,
    /// Who manages the fields.
    pub field_manager: String,
    /// How strictly the body is read.
    pub field_validation: FieldValidation,
    /// Keys that the body's text had twice, as paths: refused when strict, else a warning each.
    pub duplicates: Vec<String>,
    /// Of a creation in this process: the `resourceVersion` of the object whose place the new one takes, in one step.
    pub instead_of: Option<String>,
}

/// A list's parameters.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Selectors.
    pub filter: Filter,
    /// Page size.
    pub limit: Option<usize>,
    /// The continue token.
    pub continue_token: Option<String>,
    /// `resourceVersion` as given.
    pub resource_version: Option<String>,
    /// `resourceVersionMatch` as given.
    pub version_match: Option<String>,
}

/// A deletion's parameters.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds.
    pub grace: Option<i64>,
    /// `Orphan`, `Background`, `Foreground`.
    pub propagation: Option<String>,
    /// Only this uid.
    pub uid: Option<String>,
    /// Only this revision.
    pub resource_version: Option<String>,
    /// Everything but the write.
    pub dry_run: bool,
}

/// A patch by its content type.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge.
    Strategic(Value),
}

/// What is asked for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are the API's verbs")]
pub enum Operation {
    Get {
        resource_version: Option<String>,
    },
    List(ListOptions),
    Watch {
        filter: Filter,
        from: From,
        bookmarks: bool,
    },
    Create {
        body: Value,
        options: WriteOptions,
    },
    Update {
        body: Value,
        options: WriteOptions,
    },
    Patch {
        patch: Patch,
        options: WriteOptions,
    },
    Delete(DeleteOptions),
    DeleteCollection {
        list: ListOptions,
        options: DeleteOptions,
    },
}

impl Operation {
    /// Whether it changes nothing.
    pub const fn reads(&self) -> bool {
        matches!(self, Self::Get { .. } | Self::List(_) | Self::Watch { .. })
    }

    /// Whether it does everything but the write.
    pub const fn is_dry_run(&self) -> bool {
        match self {
            Self::Get { .. } | Self::List(_) | Self::Watch { .. } => false,
            Self::Create { options, .. } | Self::Update { options, .. } | Self::Patch { options, .. } => {
                options.dry_run
            }
            Self::Delete(options) | Self::DeleteCollection { options, .. } => options.dry_run,
        }
    }
}

/// One call.
#[derive(Clone)]
pub struct Call {
    /// By whom.
    pub user: Arc<User>,
    /// About what.
    pub target: Target,
    /// To do what.
    pub operation: Operation,
}

/// What comes of it.
pub enum Answer {
    /// An object: 200, 201 (created) or 202 (deletion accepted).
    Object {
        /// HTTP status code.
        code: u16,
        /// JSON with `resourceVersion`.
        body: Bytes,
        /// For `Warning` headers.
        warnings: Vec<String>,
    },
    /// A success without an object.
    Status(Status),
    /// A list, with the continue token of its next page.
    List {
        /// The objects.
        page: Page,
        /// `metadata.continue`.
        continue_token: Option<String>,
    },
    /// A watch.
    Watch(crate::cache::Watch),
}

/// A revision that an answer carries, for callers that chain reads.
pub type Seen = Revision;
