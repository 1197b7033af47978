//! A write as one transaction of etcd's, and what its answer says. Pure.
//!
//! Each transaction also expects the store's *fence* to be where it was when the transaction was made, and leaves its
//! number as the store's *mark*. Who moves the fence makes sure that nothing sent before can happen any more; who reads
//! the history of the mark knows what did. See [`super::write`].

use agent::units::Revision;
use bytes::Bytes;

use super::message::{
    Compare, CompareResult, CompareTarget, Compared, DeleteRangeRequest, Headed as _, PutRequest, RangeRequest,
    Request, RequestOp, TxnRequest, TxnResponse, number, signed,
};
use crate::store::{Change, Expect, Write};

/// What signs the transactions of a store, and what stops them: two keys of its own.
#[derive(Clone, Debug)]
pub struct Signer {
    /// Written in doubt only.
    pub fence: Bytes,
    /// Written with each write.
    pub mark: Bytes,
}

/// What a transaction is signed with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Signature {
    /// Its number; no other's of this store.
    pub id: u64,
    /// The last write of the fence; zero if there is none.
    pub fence: Revision,
    /// Of the mark, so that it does not outlive its store by long.
    pub lease: i64,
}

impl Signature {
    /// What the mark holds then.
    pub fn mark(&self) -> Bytes {
        Bytes::copy_from_slice(&self.id.to_be_bytes())
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Written.
    Done(Revision),
    /// What the write expects is not so.
    Conflict(Option<Revision>),
    /// The write's guard holds no longer.
    Overtaken,
    /// The fence is elsewhere: the write did not happen.
    Fenced(Revision),
    /// It has not the form of an answer.
    Odd,
}

/// The transaction of a write. `lease`: of the key, or zero.
pub fn request(write: &Write, lease: i64, signer: &Signer, signature: Signature) -> TxnRequest {
    let mark = Request::Put(PutRequest {
        key: signer.mark.clone(),
        value: signature.mark(),
        lease: signature.lease,
    });
    transaction(write, lease, signer, signature.fence, Some(mark))
}

/// The transaction of a write that leaves no mark: a delete like that is all that etcd takes when it is full.
pub fn unsigned(write: &Write, signer: &Signer, fence: Revision) -> TxnRequest {
    transaction(write, 0, signer, fence, None)
}

fn transaction(write: &Write, lease: i64, signer: &Signer, fence: Revision, mark: Option<Request>) -> TxnRequest {
    let key = Bytes::copy_from_slice(write.key.as_bytes());
    let expected = match (write.expect, &write.change) {
        // There is no such revision: this only tells what is there.
        (Expect::Absent, Change::Delete) => Some(compare(&key, CompareResult::Equal, Compared::Mod(-1))),
        (Expect::Absent, Change::Put(_) | Change::Move { .. }) => {
            Some(compare(&key, CompareResult::Equal, Compared::Create(0)))
        }
        (Expect::At(revision), _) => {
            let revision = signed(revision.get());
            Some(compare(&key, CompareResult::Equal, Compared::Mod(revision)))
        }
        // There must be something to delete.
        (Expect::Any, Change::Delete) => Some(compare(&key, CompareResult::Greater, Compared::Create(0))),
        (Expect::Any, Change::Put(_) | Change::Move { .. }) => None,
    };
    let other = other(write);
    let expected_too = other
        .as_ref()
        .map(|(from, at)| compare(from, CompareResult::Equal, Compared::Mod(signed(at.get()))));
    let guarded = write.guard.as_ref().map(|guard| {
        let key = Bytes::copy_from_slice(guard.key.as_bytes());
        compare(&key, CompareResult::Equal, Compared::Mod(signed(guard.at.get())))
    });
    let fenced = Compared::Mod(signed(fence.get()));
    let fenced = compare(&signer.fence, CompareResult::Equal, fenced);
    let change = match &write.change {
        Change::Put(value) | Change::Move { value, .. } => Request::Put(PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease,
        }),
        Change::Delete => Request::Delete(DeleteRangeRequest { key: key.clone() }),
    };
    let removal = other
        .as_ref()
        .map(|(from, _)| Request::Delete(DeleteRangeRequest { key: from.clone() }));
    let reads = [&signer.fence, &key].into_iter();
    let reads = reads.chain(other.as_ref().map(|(from, _)| from));
    let reads = reads.chain(guarded.as_ref().map(|compare| &compare.key)).map(read);
    let compared = expected.into_iter().chain(expected_too);
    TxnRequest {
        success: operations([change].into_iter().chain(removal).chain(mark)),
        failure: operations(reads),
        compare: compared.chain([fenced]).chain(guarded).collect(),
    }
}

/// The other key of a [`Change::Move`], and its last write.
fn other(write: &Write) -> Option<(Bytes, Revision)> {
    match &write.change {
        Change::Move { from, at, .. } => Some((Bytes::copy_from_slice(from.as_bytes()), *at)),
        Change::Put(_) | Change::Delete => None,
    }
}

/// What the answer to [`request`] says.
pub fn outcome(write: &Write, answer: &TxnResponse, fence: Revision) -> Outcome {
    if answer.succeeded {
        return Outcome::Done(Revision::new(answer.revision()));
    }
    let last_write = |place: usize| {
        let range = answer.responses.get(place)?.range.as_ref()?;
        let found = range.kvs.first();
        Some(found.map(|kv| Revision::new(number(kv.mod_revision))))
    };
    let own = last_write(1);
    let has_other = other(write).is_some();
    let own_is_met = has_other && own.is_some_and(|current| write.expect.holds(current));
    let unmet = if own_is_met { last_write(2) } else { own };
    let guard_is_met = match &write.guard {
        None => Some(true),
        Some(guard) => last_write(if has_other { 3 } else { 2 }).map(|current| guard.holds(current)),
    };
    match (last_write(0), guard_is_met, unmet) {
        (Some(seen), Some(guard_is_met), Some(current)) => match seen.unwrap_or(Revision::ZERO) {
            seen if seen != fence => Outcome::Fenced(seen),
            _ if !guard_is_met => Outcome::Overtaken,
            _ => Outcome::Conflict(current),
        },
        (None, ..) | (_, None, _) | (.., None) => Outcome::Odd,
    }
}

fn compare(key: &Bytes, result: CompareResult, with: Compared) -> Compare {
    let target = match with {
        Compared::Create(_) => CompareTarget::Create,
        Compared::Mod(_) => CompareTarget::Mod,
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key: key.clone(),
        with: Some(with),
    }
}

fn read(key: &Bytes) -> Request {
    Request::Range(RangeRequest {
        key: key.clone(),
        keys_only: true,
        ..RangeRequest::default()
    })
}

fn operations(requests: impl IntoIterator<Item = Request>) -> Vec<RequestOp> {
    let operation = |request| RequestOp { request: Some(request) };
    requests.into_iter().map(operation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::etcd::message::{KeyValue, RangeResponse, ResponseHeader, ResponseOp};

    #[test]
    fn a_write_expects_what_it_says_and_the_fence_and_leaves_its_mark() {
        let key = Bytes::from_static(b"/a");
        let signer = Signer {
            fence: Bytes::from_static(b"fence"),
            mark: Bytes::from_static(b"mark"),
        };
        let signature = Signature {
            id: 3,
            fence: Revision::new(9),
            lease: 77,
        };
        let at = Expect::At(Revision::new(5));
        for (expect, value, compared) in [
            (
                Expect::Absent,
                Some("1"),
                Some((CompareResult::Equal, Compared::Create(0))),
            ),
            (at, Some("1"), Some((CompareResult::Equal, Compared::Mod(5)))),
            (at, None, Some((CompareResult::Equal, Compared::Mod(5)))),
            (Expect::Absent, None, Some((CompareResult::Equal, Compared::Mod(-1)))),
            (Expect::Any, Some("1"), None),
            (Expect::Any, None, Some((CompareResult::Greater, Compared::Create(0)))),
        ] {
            let write = Write::new(
                "/a",
                expect,
                value.map_or(Change::Delete, |text| Change::Put(Bytes::from_static(text.as_bytes()))),
            );
            let request = request(&write, 0, &signer, signature);
            let own = compared.map(|(result, with)| compare(&key, result, with));
            let fenced = compare(&signer.fence, CompareResult::Equal, Compared::Mod(9));
            let wanted: Vec<_> = own.into_iter().chain([fenced]).collect();
            assert_eq!(request.compare, wanted, "{expect:?}");
            let Some(Some(Request::Put(mark))) = request.success.get(1).map(|operation| &operation.request) else {
                panic!("{request:?}")
            };
            assert_eq!(
                (&*mark.key, &*mark.value, mark.lease),
                (b"mark".as_slice(), b"\0\0\0\0\0\0\0\x03".as_slice(), 77)
            );
            let bare = unsigned(&write, &signer, signature.fence);
            assert_eq!((&bare.compare, bare.success.len()), (&request.compare, 1));
        }
    }

    fn a_move() -> Write {
        Write::new(
            "/b",
            Expect::Absent,
            Change::Move {
                from: "/a".into(),
                at: Revision::new(5),
                value: Bytes::from_static(b"1"),
            },
        )
    }

    #[test]
    fn a_move_expects_both_keys_and_changes_both() {
        let signer = Signer {
            fence: Bytes::from_static(b"fence"),
            mark: Bytes::from_static(b"mark"),
        };
        let signature = Signature {
            id: 3,
            fence: Revision::new(9),
            lease: 77,
        };
        let request = request(&a_move(), 0, &signer, signature);
        let (from, to) = (Bytes::from_static(b"/a"), Bytes::from_static(b"/b"));
        let wanted = [
            compare(&to, CompareResult::Equal, Compared::Create(0)),
            compare(&from, CompareResult::Equal, Compared::Mod(5)),
            compare(&signer.fence, CompareResult::Equal, Compared::Mod(9)),
        ];
        assert_eq!(request.compare, wanted);
        let put = |key: &Bytes, value, lease| {
            Request::Put(PutRequest {
                key: key.clone(),
                value,
                lease,
            })
        };
        let wanted = [
            put(&to, Bytes::from_static(b"1"), 0),
            Request::Delete(DeleteRangeRequest { key: from.clone() }),
            put(&signer.mark, signature.mark(), 77),
        ];
        assert_eq!(request.success, operations(wanted));
        assert_eq!(
            request.failure,
            operations([read(&signer.fence), read(&to), read(&from)])
        );
    }

    #[test]
    fn an_answer_tells_a_conflict_from_a_fence_that_moved() {
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
        let delete = Write {
            change: Change::Delete,
            ..a_move()
        };
        for (responses, wanted) in [
            (vec![range(9), range(7), range(5)], Outcome::Conflict(Some(revision(7)))),
            (vec![range(9), range(0), range(6)], Outcome::Conflict(Some(revision(6)))),
            (vec![range(9), range(0), range(0)], Outcome::Conflict(None)),
            (vec![range(11), range(0), range(5)], Outcome::Fenced(revision(11))),
            (vec![range(9), range(0)], Outcome::Odd),
        ] {
            assert_eq!(outcome(&a_move(), &answer(false, responses), revision(9)), wanted);
        }
        for (answer, fence, wanted) in [
            (
                answer(true, vec![ResponseOp::default()]),
                9,
                Outcome::Done(revision(12)),
            ),
            (
                answer(false, vec![range(9), range(5)]),
                9,
                Outcome::Conflict(Some(revision(5))),
            ),
            (
                answer(false, vec![range(0), range(5)]),
                0,
                Outcome::Conflict(Some(revision(5))),
            ),
            (answer(false, vec![range(9), range(0)]), 9, Outcome::Conflict(None)),
            (
                answer(false, vec![range(11), range(5)]),
                9,
                Outcome::Fenced(revision(11)),
            ),
            (answer(false, vec![range(0), range(5)]), 9, Outcome::Fenced(revision(0))),
            (answer(false, vec![range(9)]), 9, Outcome::Odd),
            (answer(false, vec![ResponseOp::default(), range(5)]), 9, Outcome::Odd),
        ] {
            assert_eq!(outcome(&delete, &answer, revision(fence)), wanted);
        }
    }
}
