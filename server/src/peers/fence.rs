//! What holds a former leader back: a pipeline that writes only while the lead is certain.
//!
//! A process may stand still between a decision and its write, longer than its lead lasts. The decision whether the write
//! may go is made here, last of all. What slips through in the instant between is left to compare-and-swap.

use std::sync::{Arc, Mutex, PoisonError};

use agent::wire::status::Status;
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use tokio::time::Instant;

use crate::registry::resource::Resource;
use crate::request::{Answer, Call, Pipeline};

/// Until when this server leads; shared by whoever extends it and whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// The lead lasts until then.
    pub fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Whether the lead lasts.
    pub fn is_open(&self, now: Instant) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|until| now < until)
    }

    /// The same pipeline, for as long as the lead lasts.
    pub fn around(&self, inner: Arc<dyn Pipeline>) -> Arc<dyn Pipeline> {
        let fence = self.clone();
        Arc::new(Fenced { inner, fence })
    }
}

struct Fenced {
    inner: Arc<dyn Pipeline>,
    fence: Fence,
}

impl Pipeline for Fenced {
    fn run(&self, call: Call) -> BoxFuture<'_, Result<Answer, Status>> {
        if call.operation.reads() || self.fence.is_open(Instant::now()) {
            return self.inner.run(call);
        }
        ready(Err(Status::unavailable("this server leads no longer"))).boxed()
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        self.inner.settled()
    }

    fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.inner.find(group, version, plural)
    }

    fn rows(&self) -> Vec<Arc<Resource>> {
        self.inner.rows()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lead_that_was_not_extended_ends_by_itself() {
        let (fence, now) = (Fence::default(), Instant::now());
        assert!(!fence.is_open(now), "nobody leads before he was elected");
        fence.set(Some(now + Duration::from_secs(7)));
        assert!(fence.clone().is_open(now + Duration::from_secs(6)));
        assert!(!fence.is_open(now + Duration::from_secs(7)));
        fence.set(None);
        assert!(!fence.is_open(now));
    }
}
