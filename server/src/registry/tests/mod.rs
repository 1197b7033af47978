//! The registry over a store in memory, driven as clients drive it: one file per verb.

mod create;
mod delete;
mod patch;
mod pods;
mod read;
mod services;
mod sharing;
mod subresource;
mod update;
mod views;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::wire::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::resource::Resource;
use super::{Registry, Settings, World};
use crate::cache::{Cache, Page};
use crate::kinds;
use crate::request::{
    Answer, Call, DeleteOptions, FieldValidation, ListOptions, Operation, Patch, Target, User, WriteOptions,
};
use crate::store::Store;
use crate::store::memory::Memory;

/// A time that stands still and a chance that counts.
struct Still(AtomicU64);

impl World for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn random(&self) -> [u8; 16] {
        let next = self
            .0
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&next.to_le_bytes());
        bytes[8..].copy_from_slice(&next.rotate_left(17).to_le_bytes());
        bytes
    }
}

/// A registry with the namespace `default` and its service account.
struct Cluster {
    registry: Registry,
    user: Arc<User>,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

/// Where a call goes: plural (or, as for kubectl, `plural.version.group`), namespace, name, subresource (empty: none).
type Place<'p> = (&'p str, &'p str, &'p str, &'p str);

impl Cluster {
    async fn new() -> Self {
        let cluster = Self::on(Arc::new(Memory::new()), 1, Settings::default()).await;
        cluster
            .create(("namespaces", "", "", ""), json!({"metadata": {"name": "default"}}))
            .await
            .unwrap();
        let account = json!({"metadata": {"name": "default"}});
        cluster
            .create(("serviceaccounts", "default", "", ""), account)
            .await
            .unwrap();
        cluster
    }

    /// One server of a cluster: whatever else there is on the store. Servers have different `chance`s.
    async fn on(store: Arc<dyn Store>, chance: u64, settings: Settings) -> Self {
        let mut tasks = JoinSet::new();
        let cache = Cache::start(Arc::clone(&store), kinds::indexer(), &mut tasks)
            .await
            .unwrap();
        let registry = Registry::new(store, cache, Arc::new(Still(AtomicU64::new(chance))), settings);
        Self {
            registry,
            user: Arc::new(User::new("admin", &["system:masters"])),
            _tasks: tasks,
        }
    }

    /// The same cluster in the eyes of somebody else.
    fn and_user(mut self, user: User) -> Self {
        self.user = Arc::new(user);
        self
    }

    async fn run(
        &self,
        (plural, namespace, name, subresource): Place<'_>,
        operation: Operation,
    ) -> Result<Answer, Status> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let called = |row: &&Arc<Resource>| row.plural == plural || full_name(row) == plural;
        let resource = kinds::table().iter().find(called).unwrap().clone();
        let target = Target {
            resource,
            namespace: some(namespace),
            name: some(name),
            subresource: some(subresource),
        };
        let user = Arc::clone(&self.user);
        self.registry
            .run(Call {
                user,
                target,
                operation,
            })
            .await
    }

    async fn object(&self, place: Place<'_>, operation: Operation) -> Result<Value, Status> {
        self.run(place, operation).await.map(|answer| value(&answer))
    }

    async fn create(&self, place: Place<'_>, body: Value) -> Result<Value, Status> {
        self.object(
            place,
            Operation::Create {
                body,
                options: strict(),
            },
        )
        .await
    }

    async fn update(&self, place: Place<'_>, body: Value) -> Result<Value, Status> {
        self.object(
            place,
            Operation::Update {
                body,
                options: strict(),
            },
        )
        .await
    }

    async fn patch(&self, place: Place<'_>, patch: Patch) -> Result<Value, Status> {
        self.object(
            place,
            Operation::Patch {
                patch,
                options: strict(),
            },
        )
        .await
    }

    async fn get(&self, place: Place<'_>) -> Result<Value, Status> {
        self.object(place, Operation::Get { resource_version: None }).await
    }

    async fn delete(&self, place: Place<'_>, options: DeleteOptions) -> Result<Answer, Status> {
        self.run(place, Operation::Delete(options)).await
    }

    async fn list(&self, place: Place<'_>, options: ListOptions) -> Result<(Page, Option<String>), Status> {
        match self.run(place, Operation::List(options)).await? {
            Answer::List { page, continue_token } => Ok((page, continue_token)),
            _ => panic!("a list that is none"),
        }
    }
}

/// What kubectl calls a row when nothing is left to guess: `deployments.v1.apps`.
fn full_name(row: &Resource) -> String {
    format!("{}.{}.{}", row.plural, row.version, row.group)
}

fn strict() -> WriteOptions {
    WriteOptions {
        field_validation: FieldValidation::Strict,
        ..WriteOptions::default()
    }
}

fn value(answer: &Answer) -> Value {
    match answer {
        Answer::Object { body, .. } => serde_json::from_slice(body).unwrap(),
        Answer::Status(status) => serde_json::to_value(status).unwrap(),
        Answer::List { .. } | Answer::Watch(_) => panic!("not an object"),
    }
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "nginx:1"}]}})
}

fn deployment(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "nginx:1"}]}}}})
}

fn names(page: &Page) -> Vec<&str> {
    page.items.iter().map(|item| item.field("metadata.name")).collect()
}

const MAPS: Place<'static> = ("configmaps", "default", "", "");
const PODS: Place<'static> = ("pods", "default", "", "");
const DEPLOYMENTS: Place<'static> = ("deployments", "default", "", "");

const fn named<'p>(place: Place<'p>, name: &'p str) -> Place<'p> {
    (place.0, place.1, name, place.3)
}

const fn part<'p>(place: Place<'p>, name: &'p str, subresource: &'p str) -> Place<'p> {
    (place.0, place.1, name, subresource)
}
