//! A key becomes another one: what every backend must do with a write of two keys. Part of the contract.

use std::sync::Arc;

use agent::units::Revision;
use bytes::Bytes;
use server::store::{Change, Expect, StoreError, Tail, Write};
use tokio::task::JoinSet;

use crate::contract::{Backend, drained, put, state, volatile};

/// `key` gets `value`, and `from`, whose last write is `at`, goes.
pub fn moved(key: &str, expect: Expect, value: &str, from: &str, at: Revision) -> Write {
    Write {
        change: Change::Move {
            from: from.into(),
            at,
            value: Bytes::copy_from_slice(value.as_bytes()),
        },
        ..put(key, expect, "")
    }
}

/// What watchers see of a move that was answered with `put`: the key set, then the other one gone, by the same revision or
/// by the next one. Returns the newest revision.
async fn is_moved(tail: &mut Tail, put: Revision, key_and_value: &str, from: &str) -> Revision {
    moved_by(&drained(tail, 2).await, put, key_and_value, from)
}

fn moved_by(shown: &[String], put: Revision, key_and_value: &str, from: &str) -> Revision {
    assert_eq!(shown[0], format!("{key_and_value}@{put}"));
    let gone = [put, put.next()]
        .into_iter()
        .find(|revision| shown[1] == format!("{from}=-@{revision}"));
    gone.unwrap_or_else(|| panic!("{shown:?}"))
}

pub async fn a_key_becomes_another_one_in_one_transaction(backend: &dyn Backend) {
    let store = &*backend.open().await;
    let one = store.write(put("/m/a", Expect::Absent, "1")).await.unwrap();
    let mut tail = store.watch(one).await.unwrap();
    let two = store
        .write(moved("/m/b", Expect::Absent, "2", "/m/a", one))
        .await
        .unwrap();
    let newest = is_moved(&mut tail, two, "/m/b=2", "/m/a").await;
    assert_eq!((two, store.revision().await.unwrap()), (one.next(), newest));
    assert_eq!(state(store, "/m/", None).await.unwrap(), [format!("/m/b=2@{two}")]);
    assert_eq!(store.get("/m/a").await.unwrap(), None);
    let found = store.get("/m/b").await.unwrap().unwrap();
    assert_eq!((found.revision, found.created), (two, two));
    // Onto a key that is there, at the revision that the move was answered with; the other one is a heartbeat.
    let three = store.write(volatile(put("/m/a", Expect::Absent, "3"))).await.unwrap();
    assert_eq!(three, newest.next(), "dense");
    assert_eq!(drained(&mut tail, 1).await, [format!("/m/a=3@{three}")]);
    let four = store
        .write(volatile(moved("/m/b", Expect::At(two), "4", "/m/a", three)))
        .await
        .unwrap();
    let newest = is_moved(&mut tail, four, "/m/b=4", "/m/a").await;
    assert_eq!(state(store, "/m/", None).await.unwrap(), [format!("/m/b=4@{four}")]);
    let late = store.watch(one).await;
    assert_eq!(is_moved(&mut late.unwrap(), two, "/m/b=2", "/m/a").await.next(), three);
    let next = store.write(put("/m/c", Expect::Absent, "5")).await.unwrap();
    assert_eq!(next, newest.next(), "dense");
    assert_eq!(drained(&mut tail, 1).await, [format!("/m/c=5@{next}")]);
}

pub async fn a_move_that_lost_the_race_for_either_key_changes_nothing(backend: &dyn Backend) {
    let store = &*backend.open().await;
    let first = store.write(put("/m/a", Expect::Absent, "1")).await.unwrap();
    let second = store.write(put("/m/a", Expect::At(first), "2")).await.unwrap();
    let taken = store.write(put("/m/b", Expect::Absent, "3")).await.unwrap();
    let before = state(store, "/m/", None).await.unwrap();
    let mut tail = store.watch(taken).await.unwrap();
    for (write, seen) in [
        // The key is taken.
        (moved("/m/b", Expect::Absent, "x", "/m/a", second), Some(taken)),
        (moved("/m/b", Expect::At(second), "x", "/m/a", second), Some(taken)),
        (moved("/m/c", Expect::At(taken), "x", "/m/a", second), None),
        // The other one was written again, or is gone.
        (moved("/m/c", Expect::Absent, "x", "/m/a", first), Some(second)),
        (moved("/m/b", Expect::At(taken), "x", "/m/a", first), Some(second)),
        (moved("/m/c", Expect::Absent, "x", "/m/none", first), None),
        // Both.
        (moved("/m/b", Expect::Absent, "x", "/m/a", first), Some(taken)),
    ] {
        let shown = format!("{write:?}");
        let refused = store.write(write).await;
        assert!(
            matches!(refused, Err(StoreError::Conflict { current }) if current == seen),
            "{shown}: {refused:?}"
        );
    }
    assert_eq!(state(store, "/m/", None).await.unwrap(), before);
    let next = store.write(put("/m/d", Expect::Absent, "4")).await.unwrap();
    assert_eq!(next, taken.next(), "refused moves use no revision");
    assert_eq!(
        drained(&mut tail, 1).await,
        [format!("/m/d=4@{next}")],
        "nor do they show"
    );
}

pub async fn of_servers_that_move_one_key_at_once_one_does(backend: &dyn Backend) {
    let stores = [backend.open().await, backend.open().await];
    let mut tail = stores[1].watch(stores[0].revision().await.unwrap()).await.unwrap();
    for round in 0..20 {
        let from = format!("/x/{round}");
        let at = stores[round % 2].write(put(&from, Expect::Absent, "0")).await.unwrap();
        let mut movers = JoinSet::new();
        for number in 0..6 {
            let (store, from) = (Arc::clone(&stores[number % 2]), from.clone());
            movers.spawn(async move {
                let to = format!("{from}/{number}");
                let write = moved(&to, Expect::Absent, "1", &from, at);
                (to, store.write(write).await)
            });
        }
        let mut done = Vec::new();
        for (to, answer) in movers.join_all().await {
            match answer {
                Ok(revision) => done.push((to, revision)),
                Err(StoreError::Conflict { current }) => assert_eq!(current, None, "of the key that is gone"),
                Err(error) => panic!("{error}"),
            }
        }
        let [(to, revision)] = done.as_slice() else {
            panic!("round {round}: {done:?}")
        };
        let wanted = [format!("{to}=1@{revision}")];
        for store in &stores {
            assert_eq!(state(&**store, &from, None).await.unwrap(), wanted, "round {round}");
        }
        let shown = drained(&mut tail, 3).await;
        assert_eq!(shown[0], format!("{from}=0@{at}"));
        moved_by(&shown[1..], *revision, &format!("{to}=1"), &from);
    }
}
