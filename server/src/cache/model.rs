//! The cache against a model that keeps every write and works everything out anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use agent::units::{Bytes as Size, Revision};
use agent::wire::selector::{Fields, Labels};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::{Cache, ChangeKind, Filter, From, Index, Indexer, Watch, WatchEvent};
use crate::store::memory::Memory;
use crate::store::{Change, Event, Expect, Store, Write};

const KEYS: [&str; 5] = [
    "/registry/pods/a/x",
    "/registry/pods/a/y",
    "/registry/pods/b/x",
    "/registry/leases/a/x",
    "/registry/leases/b/x",
];
const PREFIXES: [&str; 5] = [
    "/registry/",
    "/registry/pods/",
    "/registry/pods/a/",
    "/registry/leases/",
    "/none/",
];
const SELECTORS: [&str; 3] = ["", "app=0", "app!=1"];

/// A key, and the label it is put with, or its deletion.
type Op = (usize, Option<u8>);

/// What is done, and the naive answers.
#[derive(Default)]
struct Model(Vec<(u64, &'static str, Option<u8>)>);

/// Key, revision, label.
type State = BTreeMap<&'static str, (u64, u8)>;

impl Model {
    fn state(&self, at: u64) -> State {
        let mut state = State::new();
        for (revision, key, label) in self.0.iter().filter(|(revision, ..)| *revision <= at) {
            match label {
                Some(label) => state.insert(key, (*revision, *label)),
                None => state.remove(key),
            };
        }
        state
    }

    fn list(&self, prefix: &str, selector: &str, at: u64) -> Vec<(String, u64)> {
        let state = self.state(at).into_iter();
        let wanted = state.filter(|(key, (_, label))| key.starts_with(prefix) && selects(selector, *label));
        wanted.map(|(key, (revision, _))| (key.to_owned(), revision)).collect()
    }

    fn events(&self, prefix: &str, selector: &str, after: u64) -> Vec<(ChangeKind, String, u64)> {
        let writes = self
            .0
            .iter()
            .filter(|(revision, key, _)| *revision > after && key.starts_with(prefix));
        let seen = |(revision, key, label): &(u64, &'static str, Option<u8>)| {
            let before = self
                .state(*revision - 1)
                .get(key)
                .is_some_and(|(_, label)| selects(selector, *label));
            let now = label.is_some_and(|label| selects(selector, label));
            let kind = match (before, now) {
                (false, false) => return None,
                (false, true) => ChangeKind::Added,
                (true, true) => ChangeKind::Modified,
                (true, false) => ChangeKind::Deleted,
            };
            Some((kind, (*key).to_owned(), *revision))
        };
        writes.filter_map(seen).collect()
    }
}

fn selects(selector: &str, label: u8) -> bool {
    match selector {
        "app=0" => label == 0,
        "app!=1" => label != 1,
        _ => true,
    }
}

fn filter(selector: &str) -> Filter {
    Filter {
        labels: Labels::parse(selector).unwrap(),
        fields: Fields::default(),
    }
}

fn indexer() -> Indexer {
    Arc::new(|_, value: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(value).unwrap();
        let metadata = &value["metadata"];
        Index {
            labels: [("app".into(), metadata["labels"]["app"].as_str().unwrap().into())].into(),
            owners: [metadata["labels"]["app"].as_str().unwrap().into()].into(),
            ..Index::default()
        }
    })
}

fn write(key: &str, label: Option<u8>, padding: usize) -> Write {
    let body = |label| {
        let padding = "x".repeat(padding);
        format!(
            r#"{{"apiVersion":"v1","kind":"Any","metadata":{{"labels":{{"app":"{label}"}},"name":"n"}},"pad":"{padding}"}}"#
        )
    };
    Write::new(
        key,
        Expect::Any,
        label.map_or(Change::Delete, |label| Change::Put(Bytes::from(body(label)))),
    )
}

/// Everything a watch has now.
fn drained(watch: &mut Watch) -> Vec<(ChangeKind, String, u64)> {
    let events = std::iter::from_fn(|| watch.ready());
    let change = |event| match event {
        WatchEvent::Change(kind, item) => {
            let number = item.revision.to_string();
            assert_eq!(item.value()["metadata"]["resourceVersion"], number.as_str());
            Some((kind, item.key.to_string(), item.revision.get()))
        }
        WatchEvent::Bookmark { .. } => None,
    };
    events.filter_map(change).collect()
}

/// The list, whole and in pages, as of each revision.
fn lists_agree(cache: &Cache, model: &Model) {
    let newest = cache.revision().get();
    for (prefix, selector) in PREFIXES
        .iter()
        .flat_map(|prefix| SELECTORS.map(|selector| (*prefix, selector)))
    {
        for at in 0..=newest {
            let wanted = model.list(prefix, selector, at);
            for limit in [None, Some(1), Some(2)] {
                let (mut got, mut after): (Vec<_>, Option<Arc<str>>) = (Vec::new(), None);
                loop {
                    let at = Some(Revision::new(at));
                    let page = cache
                        .list(prefix, &filter(selector), after.as_deref(), limit, at)
                        .unwrap();
                    got.extend(
                        page.items
                            .iter()
                            .map(|item| (item.key.to_string(), item.revision.get())),
                    );
                    assert_eq!(Some(page.revision), at);
                    if let Some(remaining) = page.remaining {
                        assert_eq!(usize::try_from(remaining).unwrap(), wanted.len() - got.len());
                    }
                    after = page.next;
                    if after.is_none() {
                        break;
                    }
                }
                assert_eq!(got, wanted, "{prefix} {selector} at {at}, limit {limit:?}");
            }
        }
    }
    for (key, (revision, label)) in model.state(newest) {
        assert_eq!(cache.get(key).unwrap().revision.get(), revision);
        assert!(cache.by_owner(&label.to_string()).iter().any(|item| &*item.key == key));
    }
}

fn watches_agree(cache: &Cache, model: &Model) {
    let newest = cache.revision();
    for (prefix, selector) in PREFIXES
        .iter()
        .flat_map(|prefix| SELECTORS.map(|selector| (*prefix, selector)))
    {
        for after in 0..=newest.get() {
            let from = From::After(Revision::new(after));
            let mut watch = cache.watch(prefix, filter(selector), from).unwrap();
            let wanted = model.events(prefix, selector, after);
            let next = wanted.first().map_or(newest.get(), |(_, _, revision)| revision - 1);
            assert!(
                watch.bookmark().get() <= next.max(after),
                "a bookmark that skips events"
            );
            assert_eq!(drained(&mut watch), wanted, "{prefix} {selector} after {after}");
            assert_eq!(watch.bookmark(), newest);
        }
        let mut state = cache
            .watch(prefix, filter(selector), From::State { bookmark: true })
            .unwrap();
        let listed: Vec<_> = model.list(prefix, selector, newest.get());
        let initial: Vec<_> = drained(&mut state)
            .into_iter()
            .map(|(_, key, revision)| (key, revision))
            .collect();
        assert_eq!(initial, listed);
    }
}

async fn agrees(history: Vec<Op>) {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let mut tasks = JoinSet::new();
    let cache = Cache::start(Arc::clone(&store), indexer(), &mut tasks).await.unwrap();
    let mut live = cache.watch("/registry/pods/", filter("app!=1"), From::Now).unwrap();
    let (mut model, mut seen) = (Model::default(), Vec::new());
    for (step, (key, label)) in history.into_iter().enumerate() {
        // A deletion of nothing is refused, and uses no revision.
        if let Ok(revision) = store.write(write(KEYS[key], label, 0)).await {
            model.0.push((revision.get(), KEYS[key], label));
            cache.reached(revision).await;
        }
        if step % 3 == 0 {
            seen.extend(drained(&mut live));
        }
    }
    seen.extend(drained(&mut live));
    assert_eq!(seen, model.events("/registry/pods/", "app!=1", 0));
    lists_agree(&cache, &model);
    watches_agree(&cache, &model);
    // Another server on the same log, or this one restarted.
    let again = Cache::start(store, indexer(), &mut tasks).await.unwrap();
    lists_agree(&again, &model);
    watches_agree(&again, &model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn lists_and_watches_agree_with_a_model_at_every_revision(
        history in vec((0..KEYS.len(), proptest::option::weighted(0.75, 0_u8..3)), 0..24)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(agrees(history));
    }
}

#[tokio::test]
async fn a_watch_that_sleeps_through_its_history_ends_and_the_past_expires() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let mut tasks = JoinSet::new();
    let cache = Cache::start(Arc::clone(&store), indexer(), &mut tasks).await.unwrap();
    cache.0.write(|state| state.history.bound(Size::kib(64)));
    let mut sleeper = cache.watch("/registry/pods/", Filter::default(), From::Now).unwrap();
    let mut other = cache.watch("/registry/leases/", Filter::default(), From::Now).unwrap();
    let mut newest = store.write(write(KEYS[3], Some(0), 0)).await.unwrap();
    for _ in 0..200 {
        newest = store.write(write(KEYS[0], Some(0), 1000)).await.unwrap();
    }
    cache.reached(newest).await;
    assert!(sleeper.next().await.is_none());
    assert!(
        other.next().await.is_some(),
        "a flood of one resource leaves the history of others alone"
    );
    let list = |prefix, at| cache.list(prefix, &Filter::default(), None, None, Some(Revision::new(at)));
    let expired = list("/registry/pods/", 2).unwrap_err();
    assert!(expired.oldest > expired.asked, "{expired}");
    assert!(list("/registry/pods/", expired.oldest.get()).is_ok());
    assert!(list("/registry/leases/", 1).is_ok());
    let resumed = cache.watch("/registry/pods/", Filter::default(), From::After(expired.asked));
    assert!(resumed.is_err());
}

#[tokio::test]
async fn watches_end_when_nobody_follows_the_store_any_more() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let mut tasks = JoinSet::new();
    let cache = Cache::start(store, indexer(), &mut tasks).await.unwrap();
    let mut watch = cache.watch("/registry/pods/", Filter::default(), From::Now).unwrap();
    tasks.shutdown().await;
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_revision_of_several_keys_is_applied_whole_and_ends_the_watches() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let mut tasks = JoinSet::new();
    let cache = Cache::start(Arc::clone(&store), indexer(), &mut tasks).await.unwrap();
    for key in KEYS {
        let written = store.write(write(key, Some(0), 0)).await.unwrap();
        cache.reached(written).await;
    }
    let before = cache.revision();
    let begin = |from| cache.watch("/registry/", Filter::default(), from);
    let mut watch = begin(From::Now).unwrap();
    let gone = |key: &&str, revision| Event {
        key: (*key).into(),
        revision,
        created: Revision::ZERO,
        value: None,
    };
    // One key, all but the last of the others, and the last: as two revisions of one and one of several.
    let (one, several, last) = (before.next(), before.next().next(), before.next().next().next());
    let (kept, rest) = KEYS.split_last().unwrap();
    let mut batch = vec![gone(&rest[0], one)];
    batch.extend(rest[1..].iter().map(|key| gone(key, several)));
    batch.push(gone(kept, last));
    let apply = |batch: &[Event]| {
        let events = batch.iter().map(|event| (event, None));
        cache.0.write(|state| state.apply(events, Instant::now()));
    };
    apply(&batch[..rest.len()]);
    assert_eq!(cache.all("/registry/").len(), 1, "all but the last are gone");
    assert!(watch.ready().is_none() && watch.next().await.is_none());
    assert!(begin(From::After(before)).is_err() && begin(From::After(one)).is_err());
    let mut anew = begin(From::After(several)).unwrap();
    // What comes again changes nothing.
    apply(&batch);
    assert_eq!(
        drained(&mut anew),
        [(ChangeKind::Deleted, (*kept).to_owned(), last.get())]
    );
    assert!(cache.all("/registry/").is_empty());
    assert!(cache.by_owner("0").is_empty());
}
