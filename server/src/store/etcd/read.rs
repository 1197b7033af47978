//! Reading: one key, or all under a prefix as of one revision, page by page.
//!
//! All reads are linearizable: etcd asks its leader before it answers. The pages of one list are all of the revision of
//! its first. A page has so many keys that it is a few MiB, judged by the one before.

use std::time::{Duration, Instant};

use agent::units::Revision;
use bytes::Bytes;

use super::client::Client;
use super::grpc::Meaning;
use super::keys::{self, entry};
use super::link::Failure;
use super::message::{Headed as _, RangeRequest, RangeResponse, signed};
use super::watch;
use crate::store::{Entry, Range, Snapshot, StoreError};

/// For a read to be answered, through as many members as it takes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Keys of the first page: 96 MiB if each is as long as etcd allows by default.
const FIRST_PAGE: usize = 64;
const LARGEST_PAGE: usize = 10_000;
/// What a page is meant to take.
const PAGE_SIZE: usize = 4 << 20;

/// Starts of a list that were overtaken by a compaction.
const RESTARTS: usize = 3;

/// One key, as of now.
pub async fn get(client: &Client, key: &str) -> Result<Option<Entry>, StoreError> {
    let request = RangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..RangeRequest::default()
    };
    let answer = range(client, &request).await.map_err(|failure| failure.plain())?;
    Ok(answer.kvs.into_iter().next().and_then(entry))
}

/// The newest revision.
pub async fn revision(client: &Client) -> Result<Revision, StoreError> {
    let answer = range(client, &probe(Revision::ZERO))
        .await
        .map_err(|failure| failure.plain())?;
    Ok(Revision::new(answer.revision()))
}

/// A range, as of now or as of `at`.
pub async fn list(client: &Client, wanted: &Range, at: Option<Revision>) -> Result<Snapshot, StoreError> {
    if at == Some(Revision::ZERO) {
        // Zero is "now" to etcd. Its first revision is 1, and nothing was written in that.
        reachable(client, Revision::ZERO).await?;
        return Ok(Snapshot {
            revision: Revision::ZERO,
            entries: Vec::new(),
            more: false,
        });
    }
    for _ in 0..RESTARTS {
        match pages(client, wanted, at).await {
            // It was current when the list began, and is compacted now.
            Err(Failure::Said(status)) if at.is_none() && status.meaning() == Meaning::Compacted => {}
            Err(problem) => return Err(explain(client, at.unwrap_or_default(), problem).await),
            Ok(snapshot) => return Ok(snapshot),
        }
    }
    Err(StoreError::Unavailable(
        "the list is overtaken by compactions again and again".to_owned(),
    ))
}

async fn pages(client: &Client, wanted: &Range, at: Option<Revision>) -> Result<Snapshot, Failure> {
    let (mut key, range_end) = keys::bounds(&wanted.prefix, wanted.after.as_deref());
    let mut revision = at;
    let mut entries = Vec::new();
    let mut page = FIRST_PAGE;
    loop {
        let rest = wanted
            .limit
            .map_or(usize::MAX, |limit| limit.saturating_sub(entries.len()));
        let request = RangeRequest {
            key,
            range_end: range_end.clone(),
            // Zero would be "all".
            limit: i64::try_from(page.min(rest).max(1)).unwrap_or(i64::MAX),
            revision: revision.map_or(0, |revision| signed(revision.get())),
            keys_only: false,
        };
        let answer = range(client, &request).await?;
        let seen = *revision.get_or_insert(Revision::new(answer.revision()));
        let size = answer.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        page = next_page(page, answer.kvs.len(), size);
        let last = answer.kvs.last().map(|kv| keys::after(&kv.key));
        if rest == 0 {
            return Ok(Snapshot {
                revision: seen,
                more: !answer.kvs.is_empty(),
                entries,
            });
        }
        entries.extend(answer.kvs.into_iter().filter_map(entry));
        let full = wanted.limit.is_some_and(|limit| entries.len() >= limit);
        match last {
            Some(last) if answer.more && !full => key = last,
            Some(_) | None => {
                return Ok(Snapshot {
                    revision: seen,
                    entries,
                    more: answer.more,
                });
            }
        }
    }
}

async fn range(client: &Client, request: &RangeRequest) -> Result<RangeResponse, Failure> {
    client.call("KV/Range", request, Instant::now() + PATIENCE).await
}

/// A read that finds nothing, to learn what else the answer says.
fn probe(at: Revision) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(keys::NOBODYS),
        limit: 1,
        revision: signed(at.get()),
        keys_only: true,
        ..RangeRequest::default()
    }
}

/// Whether the state at a revision can still be had. Returns the newest revision.
///
/// # Errors
/// [`StoreError::Compacted`], [`StoreError::Future`], or that etcd does not answer.
pub async fn reachable(client: &Client, asked: Revision) -> Result<Revision, StoreError> {
    match range(client, &probe(asked.max(Revision::new(1)))).await {
        Ok(answer) => Ok(Revision::new(answer.revision())),
        Err(problem) => Err(explain(client, asked, problem).await),
    }
}

/// What a failed request about a revision means; asks etcd for the numbers that its refusal leaves out.
pub async fn explain(client: &Client, asked: Revision, problem: Failure) -> StoreError {
    let Failure::Said(status) = &problem else {
        return problem.plain();
    };
    match status.meaning() {
        Meaning::Compacted => match watch::oldest(client, asked).await {
            Ok(oldest) => StoreError::Compacted { asked, oldest },
            Err(failure) => failure.plain(),
        },
        Meaning::Future => match revision(client).await {
            Ok(current) => StoreError::Future { asked, current },
            Err(error) => error,
        },
        Meaning::Full
        | Meaning::TooLarge
        | Meaning::Elsewhere
        | Meaning::StaleToken
        | Meaning::NoAuth
        | Meaning::NoLease
        | Meaning::Refused
        | Meaning::Unclear => problem.plain(),
    }
}

/// How many keys to ask for after a page of `keys` keys and `size` bytes that was asked for `page`.
fn next_page(page: usize, keys: usize, size: usize) -> usize {
    let each = (size / keys.max(1)).max(1);
    // What follows may be longer than what was seen: no faster than four times.
    (PAGE_SIZE / each).clamp(1, page.saturating_mul(4)).min(LARGEST_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_and_shrink_towards_a_few_mebibytes() {
        for (page, keys, size, next) in [
            (64, 64, 64 << 10, 256),
            (256, 256, 256 << 10, 1024),
            (4096, 4096, 4 << 20, 4096),
            (4096, 4096, 64 << 20, 256),
            (64, 64, 96 << 20, 2),
            (1, 1, 16 << 20, 1),
            (10_000, 10_000, 10_000, 10_000),
            (64, 0, 0, 256),
        ] {
            assert_eq!(next_page(page, keys, size), next, "{page} {keys} {size}");
        }
    }
}
