//! A write as one transaction of etcd's, and what its answer says. Pure.
//!
//! Beside what the write expects, each transaction expects the store's *fence* to be where it was when the transaction
//! was made. To move the fence is to make sure that nothing sent before can happen any more; see [`super::write`].

use agent::units::Revision;
use bytes::Bytes;

use super::message::{
    Compare, CompareResult, CompareTarget, Compared, DeleteRangeRequest, Headed as _, PutRequest, RangeRequest,
    Request, RequestOp, TxnRequest, TxnResponse, number, signed,
};
use crate::store::{Change, Event, Expect, Write};

/// How a transaction ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Written.
    Done(Revision),
    /// What the write expects is not so.
    Conflict(Option<Revision>),
    /// The fence is elsewhere: nothing is known about the write but that it did not happen.
    Fenced(Revision),
    /// It has not the form of an answer.
    Odd,
}

/// The transaction of a write. `fence`: the fence's key and last write; zero if it has none.
pub fn request(write: &Write, lease: i64, fence_key: &Bytes, fence: Revision) -> TxnRequest {
    let key = Bytes::copy_from_slice(write.key.as_bytes());
    let (expected, exists) = match (write.expect, &write.change) {
        // There is no such revision: this only tells what is there.
        (Expect::Absent, Change::Delete) => (Some((CompareTarget::Mod, Compared::Mod(-1))), CompareResult::Equal),
        (Expect::Absent, Change::Put(_)) => (Some((CompareTarget::Create, Compared::Create(0))), CompareResult::Equal),
        (Expect::At(revision), _) => {
            let revision = signed(revision.get());
            (
                Some((CompareTarget::Mod, Compared::Mod(revision))),
                CompareResult::Equal,
            )
        }
        // There must be something to delete.
        (Expect::Any, Change::Delete) => (
            Some((CompareTarget::Create, Compared::Create(0))),
            CompareResult::Greater,
        ),
        (Expect::Any, Change::Put(_)) => (None, CompareResult::Equal),
    };
    let compare = |key: &Bytes, result: CompareResult, (target, with): (CompareTarget, Compared)| Compare {
        result: result.into(),
        target: target.into(),
        key: key.clone(),
        with: Some(with),
    };
    let fenced = (CompareTarget::Mod, Compared::Mod(signed(fence.get())));
    let fenced = compare(fence_key, CompareResult::Equal, fenced);
    let expected = expected.map(|expected| compare(&key, exists, expected));
    let read = |key: &Bytes| RangeRequest {
        key: key.clone(),
        keys_only: true,
        ..RangeRequest::default()
    };
    let failure = [read(fence_key), read(&key)].map(Request::Range);
    let success = match &write.change {
        Change::Put(value) => Request::Put(PutRequest {
            key,
            value: value.clone(),
            lease,
        }),
        Change::Delete => Request::Delete(DeleteRangeRequest { key }),
    };
    let operation = |request| RequestOp { request: Some(request) };
    TxnRequest {
        compare: expected.into_iter().chain([fenced]).collect(),
        success: vec![operation(success)],
        failure: failure.into_iter().map(operation).collect(),
    }
}

/// What the answer to [`request`] says.
pub fn outcome(answer: &TxnResponse, fence: Revision) -> Outcome {
    if answer.succeeded {
        return Outcome::Done(Revision::new(answer.revision()));
    }
    let at = |number_of: usize| {
        let range = answer.responses.get(number_of)?.range.as_ref()?;
        Some(
            range
                .kvs
                .first()
                .map_or(Revision::ZERO, |kv| Revision::new(number(kv.mod_revision))),
        )
    };
    match (at(0), at(1)) {
        (Some(seen), Some(_)) if seen != fence => Outcome::Fenced(seen),
        (Some(_), Some(current)) => Outcome::Conflict(Some(current).filter(|current| *current != Revision::ZERO)),
        (None, _) | (_, None) => Outcome::Odd,
    }
}

/// Where in the history a write happened that may have: `history` is all of its key since before it was sent, in order,
/// to where the fence moved. An equal write by somebody else counts as ours: it made the state that was asked for, out
/// of the state that was expected.
pub fn found(write: &Write, history: &[Event]) -> Option<Revision> {
    let is_it = |event: &&Event| match &write.change {
        Change::Put(value) => event.value.as_ref() == Some(value),
        Change::Delete => event.value.is_none(),
    };
    let event = match write.expect {
        // The first write after the expected one is ours, or ours did not happen.
        Expect::At(expected) => history.iter().find(|event| event.revision > expected).filter(is_it),
        Expect::Absent => history
            .iter()
            .filter(|event| event.created == event.revision)
            .find(is_it),
        Expect::Any => history.iter().find(is_it),
    };
    event.map(|event| event.revision)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::Durability;
    use crate::store::etcd::message::{KeyValue, RangeResponse, ResponseHeader, ResponseOp};

    fn write(expect: Expect, value: Option<&'static str>) -> Write {
        Write {
            key: "/a".into(),
            expect,
            change: value.map_or(Change::Delete, |text| Change::Put(Bytes::from_static(text.as_bytes()))),
            ttl: None,
            durability: Durability::Durable,
        }
    }

    fn event(revision: u64, created: u64, value: Option<&'static str>) -> Event {
        Event {
            key: Arc::from("/a"),
            revision: Revision::new(revision),
            created: Revision::new(created),
            value: value.map(|text| Bytes::from_static(text.as_bytes())),
        }
    }

    #[test]
    fn a_write_expects_what_it_says_and_the_fence() {
        let fence = Bytes::from_static(b"fence");
        for (expect, value, compared) in [
            (
                Expect::Absent,
                Some("1"),
                Some((CompareResult::Equal, Compared::Create(0))),
            ),
            (
                Expect::At(Revision::new(5)),
                Some("1"),
                Some((CompareResult::Equal, Compared::Mod(5))),
            ),
            (
                Expect::At(Revision::new(5)),
                None,
                Some((CompareResult::Equal, Compared::Mod(5))),
            ),
            (Expect::Absent, None, Some((CompareResult::Equal, Compared::Mod(-1)))),
            (Expect::Any, Some("1"), None),
            (Expect::Any, None, Some((CompareResult::Greater, Compared::Create(0)))),
        ] {
            let request = request(&write(expect, value), 0, &fence, Revision::new(9));
            let found: Vec<_> = request
                .compare
                .iter()
                .map(|compare| (compare.key.clone(), compare.result(), compare.with.unwrap()))
                .collect();
            let own = compared.map(|(result, with)| (Bytes::from_static(b"/a"), result, with));
            let wanted: Vec<_> = own
                .into_iter()
                .chain([(fence.clone(), CompareResult::Equal, Compared::Mod(9))])
                .collect();
            assert_eq!(found, wanted, "{expect:?}");
        }
    }

    #[test]
    fn an_answer_tells_a_conflict_from_a_moved_fence() {
        let range = |revision: i64| ResponseOp {
            range: Some(RangeResponse {
                kvs: (revision > 0)
                    .then(|| KeyValue {
                        mod_revision: revision,
                        ..KeyValue::default()
                    })
                    .into_iter()
                    .collect(),
                ..RangeResponse::default()
            }),
        };
        let answer = |succeeded, responses| TxnResponse {
            header: Some(ResponseHeader {
                cluster_id: 1,
                revision: 12,
            }),
            succeeded,
            responses,
        };
        let revision = Revision::new;
        for (answer, wanted) in [
            (answer(true, vec![ResponseOp::default()]), Outcome::Done(revision(12))),
            (
                answer(false, vec![range(9), range(5)]),
                Outcome::Conflict(Some(revision(5))),
            ),
            (answer(false, vec![range(9), range(0)]), Outcome::Conflict(None)),
            (answer(false, vec![range(11), range(5)]), Outcome::Fenced(revision(11))),
            (answer(false, vec![range(0), range(5)]), Outcome::Fenced(revision(0))),
            (answer(false, vec![range(9)]), Outcome::Odd),
            (answer(false, vec![ResponseOp::default(), range(5)]), Outcome::Odd),
        ] {
            assert_eq!(outcome(&answer, revision(9)), wanted);
        }
    }

    #[test]
    fn a_write_of_unknown_outcome_is_found_in_the_history_or_did_not_happen() {
        let at = |revision| Expect::At(Revision::new(revision));
        for (expect, value, history, found_at) in [
            (at(5), Some("x"), vec![], None),
            (at(5), Some("x"), vec![event(6, 1, Some("x"))], Some(6)),
            // Overwritten since: it did happen all the same.
            (
                at(5),
                Some("x"),
                vec![event(6, 1, Some("x")), event(7, 1, Some("y"))],
                Some(6),
            ),
            (
                at(5),
                Some("x"),
                vec![event(6, 1, Some("y")), event(7, 1, Some("x"))],
                None,
            ),
            // What was expected may be among what is looked at.
            (at(5), Some("x"), vec![event(5, 1, Some("x"))], None),
            (at(5), None, vec![event(5, 1, Some("x")), event(6, 0, None)], Some(6)),
            (at(5), None, vec![event(6, 1, Some("y")), event(7, 0, None)], None),
            (
                Expect::Absent,
                Some("x"),
                vec![event(6, 6, Some("x")), event(7, 0, None)],
                Some(6),
            ),
            (Expect::Absent, Some("x"), vec![event(6, 1, Some("x"))], None),
            (
                Expect::Any,
                Some("x"),
                vec![event(6, 1, Some("y")), event(8, 1, Some("x"))],
                Some(8),
            ),
            (Expect::Any, None, vec![event(6, 1, Some("y"))], None),
            (Expect::Any, None, vec![event(6, 0, None)], Some(6)),
        ] {
            let seen = found(&write(expect, value), &history);
            assert_eq!(seen, found_at.map(Revision::new), "{expect:?} {value:?} {history:?}");
        }
    }
}
