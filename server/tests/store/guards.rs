//! A write under a guard: what every backend must do with one that depends on another key. Part of the contract.

use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use server::store::{Expect, Guard, StoreError, Write};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::contract::{Backend, delete, drained, put, state, volatile};
use crate::moves::moved;

/// For writers to notice that their term is over.
const PATIENCE: Duration = Duration::from_secs(30);

/// `write`, if `key`'s last write is `at`.
fn guarded(write: Write, key: &str, at: Revision) -> Write {
    let guard = Some(Guard { key: key.into(), at });
    Write { guard, ..write }
}

pub async fn a_write_under_a_guard_happens_only_while_that_is_as_it_was(backend: &dyn Backend) {
    let store = &*backend.open().await;
    let term = store.write(put("/g/term", Expect::Any, "1")).await.unwrap();
    let mut tail = store.watch(term).await.unwrap();
    let one = guarded(put("/g/a", Expect::Absent, "1"), "/g/term", term);
    let one = store.write(one).await.unwrap();
    let two = guarded(volatile(put("/g/a", Expect::At(one), "2")), "/g/term", term);
    let two = store.write(two).await.unwrap();
    let three = guarded(moved("/g/b", Expect::Absent, "3", "/g/a", two), "/g/term", term);
    let three = store.write(three).await.unwrap();
    assert_eq!(drained(&mut tail, 4).await.len(), 4);
    // What it expects of its own is still said.
    let lost = store
        .write(guarded(put("/g/b", Expect::Absent, "x"), "/g/term", term))
        .await;
    assert!(
        matches!(lost, Err(StoreError::Conflict { current }) if current == Some(three)),
        "{lost:?}"
    );

    // Only if that holds can the next one begin, and what was asked for before it does not happen.
    let next = guarded(put("/g/term", Expect::Any, "2"), "/g/b", three);
    let next = store.write(next).await.unwrap();
    assert_eq!(drained(&mut tail, 1).await, [format!("/g/term=2@{next}")]);
    let before = state(store, "/g/", None).await.unwrap();
    for write in [
        put("/g/c", Expect::Absent, "x"),
        put("/g/b", Expect::At(three), "x"),
        put("/g/b", Expect::Any, "x"),
        volatile(put("/g/b", Expect::Any, "x")),
        delete("/g/b", Expect::At(three)),
        moved("/g/c", Expect::Absent, "x", "/g/b", three),
        // It would have lost anyway: that does not matter any more.
        put("/g/b", Expect::Absent, "x"),
        moved("/g/c", Expect::Absent, "x", "/g/a", two),
    ] {
        for (key, at) in [("/g/term", term), ("/g/none", term)] {
            let refused = store.write(guarded(write.clone(), key, at)).await;
            assert!(matches!(refused, Err(StoreError::Overtaken)), "{write:?}: {refused:?}");
        }
    }
    store.write(delete("/g/term", Expect::At(next))).await.unwrap();
    let refused = store
        .write(guarded(put("/g/c", Expect::Any, "x"), "/g/term", next))
        .await;
    assert!(matches!(refused, Err(StoreError::Overtaken)), "{refused:?}");
    let kept: Vec<String> = before.into_iter().filter(|line| !line.contains("term")).collect();
    assert_eq!(state(store, "/g/", None).await.unwrap(), kept);
}

/// Two servers take turns in leading, and each goes on writing as if it led for ever.
pub async fn nothing_of_a_term_happens_after_the_next_one_began(backend: &dyn Backend) {
    const TERM: &str = "/t/term";
    let stores = [backend.open().await, backend.open().await];
    let mut tail = stores[1].watch(stores[0].revision().await.unwrap()).await.unwrap();
    let mut writers = JoinSet::new();
    let mut written = 0;
    for round in 0..20 {
        let store = Arc::clone(&stores[round % 2]);
        let term = store.write(put(TERM, Expect::Any, &round.to_string())).await.unwrap();
        written += 1;
        writers.spawn(async move {
            let mut done = 0;
            loop {
                let write = put(&format!("/t/{round}"), Expect::Any, &done.to_string());
                match store.write(guarded(write, TERM, term)).await {
                    Ok(_) => {
                        done += 1;
                        sleep(Duration::from_millis(1)).await;
                    }
                    Err(StoreError::Overtaken) => return done,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        // Some of what it writes comes before the next term, some would come after it.
        sleep(Duration::from_millis(10)).await;
    }
    stores[0].write(put(TERM, Expect::Any, "over")).await.unwrap();
    let ended = timeout(PATIENCE, writers.join_all()).await;
    written += 1 + ended.unwrap().into_iter().sum::<usize>();
    let mut term = String::new();
    for shown in drained(&mut tail, written).await {
        let (key, value) = shown.split_once('=').unwrap();
        if key == TERM {
            value.split_once('@').unwrap().0.clone_into(&mut term);
        } else {
            assert_eq!(key, format!("/t/{term}"), "{shown} in the term of {term}");
        }
    }
    assert_eq!(term, "over");
}
