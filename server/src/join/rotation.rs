//! The cluster's token becomes another one while servers run (1.7 of the protocol).
//!
//! One task per server owns it: it does what `PUT /v1-k3s/token` asks, and on a shared datastore it sees when another
//! server has done so. Who was asked takes the new token at once and refuses the old one. The others cannot know the new
//! one (it is nowhere but under itself): they let nobody in by the old one from then on, say so, and have to be restarted
//! with the new one. Nodes that joined go on everywhere: they come with their certificates. In K3s a server accepts the
//! token that it was started with until it is started again; there, an old token that leaked is good for longer.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::wire::status::{Reason, Status};
use agent::wire::token::{Secret, server_secret};
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::bootstrap::{self, BootstrapError, Outcome};
use super::passwd::{self, Passwd, PasswdError};
use crate::store::{Store, StoreError};

/// Rotations that wait for the one under way; whoever comes then is told to come later.
const WAITING: usize = 4;
/// Between two tries of something that the datastore did not do.
const RETRY: Duration = Duration::from_secs(5);

/// Where a rotation is asked for.
#[derive(Clone)]
pub struct Rotation {
    orders: mpsc::Sender<Order>,
    passwd: Arc<Passwd>,
}

/// Who does it.
pub struct Rotator {
    orders: mpsc::Receiver<Order>,
    work: Work,
}

struct Work {
    passwd: Arc<Passwd>,
    store: Arc<dyn Store>,
    dir: PathBuf,
    shared: bool,
}

struct Order {
    next: Secret,
    answer: oneshot::Sender<Result<(), RotateError>>,
}

/// Why the token is not another one.
#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error(transparent)]
    Record(#[from] BootstrapError),
    #[error(transparent)]
    Passwd(#[from] PasswdError),
    #[error("the work was cut off: {0}")]
    CutOff(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Rotation {
    /// A rotation's two ends. `dir`: `<data>/server`; `shared`: other servers may be on the store.
    pub fn new(store: Arc<dyn Store>, passwd: Arc<Passwd>, dir: &Path, shared: bool) -> (Self, Rotator) {
        let (sender, orders) = mpsc::channel(WAITING);
        let work = Work {
            passwd: Arc::clone(&passwd),
            store,
            dir: dir.to_owned(),
            shared,
        };
        let rotation = Self { orders: sender, passwd };
        (rotation, Rotator { orders, work })
    }

    /// Makes `wanted` the cluster's token; a random one when it is empty.
    ///
    /// # Errors
    /// As K3s: 400 for what cannot be a token, 500 without details for a fault, whose log line has the same number; also
    /// 409 when the token has been rotated elsewhere, 503 when the datastore is away.
    pub async fn to(&self, wanted: &str) -> Result<(), Status> {
        let next = match wanted.trim() {
            "" => passwd::random_secret().map_err(|error| hidden(&error))?,
            text => server_secret(text).map_err(|error| {
                let why = format!(
                    "the new token cannot be the secret of a cluster: {error}. Give a plain password that neither begins with \
                     K10 nor looks like a bootstrap token (abcdef.0123456789abcdef)"
                );
                Status::failure(Reason::BadRequest, why)
            })?,
        };
        let (answer, answered) = oneshot::channel();
        self.orders
            .try_send(Order { next, answer })
            .map_err(|_| Status::unavailable("other rotations of the token are under way; try again later"))?;
        match answered.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(status(&error)),
            Err(_) => Err(Status::unavailable("this server stops; ask again once it runs")),
        }
    }

    /// Whether another server has rotated the token, so that this one knows none.
    pub fn is_behind(&self) -> bool {
        self.passwd.is_behind()
    }
}

impl Rotator {
    /// Works until the server stops.
    pub async fn run(self) {
        let Self { mut orders, work } = self;
        let mut resuming = false;
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(order) => {
                        let outcome = work.rotate(order.next).await;
                        resuming = work.is_unfinished().await;
                        // That the asker has gone changes nothing.
                        let _ = order.answer.send(outcome);
                    }
                },
                () = sleep(RETRY), if resuming => match work.resume().await {
                    Ok(()) => resuming = false,
                    Err(error) => warn!(error = %error, "a rotation of the token is not finished yet; trying again"),
                },
                () = work.lost(), if work.shared && !resuming && !work.passwd.is_behind() => work.fall_behind().await,
            }
        }
    }
}

impl Work {
    async fn rotate(&self, next: Secret) -> Result<(), RotateError> {
        self.resume().await?;
        let old = self.on_disk(|passwd| passwd.secret()).await?;
        if old == next {
            return Ok(());
        }
        let (dir, wanted) = (self.dir.clone(), next.clone());
        let rows = self
            .on_disk(move |passwd| {
                passwd.prepare(&wanted)?;
                passwd::rotated_file(&dir, &wanted)
            })
            .await?;
        match bootstrap::rotate(&*self.store, &old, &next, &rows, Timestamp::now()).await {
            Ok(()) => {}
            // Nobody knows yet; the next token stays on disk until somebody does.
            Err(error @ BootstrapError::Store(_)) => return Err(error.into()),
            Err(error) => {
                let dir = self.dir.clone();
                self.on_disk(move |_| passwd::forget_next(&dir)).await?;
                return Err(error.into());
            }
        }
        self.on_disk(move |passwd| passwd.adopt(&next)).await?;
        info!(
            "the cluster's token was rotated; nodes that joined go on, other servers have to be restarted with the new one"
        );
        Ok(())
    }

    /// Whether a rotation was cut off, by the datastore or by the disk: the next token lies there then.
    async fn is_unfinished(&self) -> bool {
        let dir = self.dir.clone();
        !matches!(self.on_disk(move |_| passwd::next(&dir)).await, Ok(None))
    }

    /// Finds out what became of a rotation whose end was not seen.
    async fn resume(&self) -> Result<(), RotateError> {
        if self.is_unfinished().await && bootstrap::resume(&*self.store, &self.dir).await? == Outcome::Finished {
            self.on_disk(Passwd::reload).await?;
        }
        Ok(())
    }

    /// Files are read and synced: not on a thread that serves.
    async fn on_disk<T, F>(&self, work: F) -> Result<T, RotateError>
    where
        T: Send + 'static,
        F: FnOnce(&Passwd) -> Result<T, PasswdError> + Send + 'static,
    {
        let passwd = Arc::clone(&self.passwd);
        Ok(tokio::task::spawn_blocking(move || work(&passwd)).await??)
    }

    /// Resolves when the record is not the present token's any more.
    async fn lost(&self) {
        loop {
            match self.look().await {
                Ok(()) => return,
                Err(error) => warn!(error = %error, "cannot see whether the token is rotated; trying again"),
            }
            sleep(RETRY).await;
        }
    }

    async fn look(&self) -> Result<(), RotateError> {
        let key = bootstrap::record_key(&self.on_disk(Passwd::secret).await?);
        let mut tail = self.store.watch(self.store.revision().await?).await?;
        loop {
            if self.store.get(&key).await?.is_none() {
                return Ok(());
            }
            // Until somebody removes it.
            let removed = async {
                while let Some(events) = tail.recv().await {
                    if events.iter().any(|event| *event.key == *key && event.value.is_none()) {
                        return true;
                    }
                }
                false
            };
            if !removed.await {
                return Err(StoreError::Unavailable("the watch ended".to_owned()).into());
            }
        }
    }

    async fn fall_behind(&self) {
        let retired = self.on_disk(|passwd| {
            passwd.retire();
            Ok(())
        });
        if let Err(error) = retired.await {
            warn!(error = &error as &dyn Error, "cannot retire the old token");
            return;
        }
        error!(
            "the cluster's token was rotated on another server. Nodes that joined go on, but no machine joins by the cluster's \
             token here until this server is restarted with the new one (--token-file or K3S_TOKEN); it is in server/token \
             below the data directory of the server that was asked"
        );
    }
}

fn status(error: &RotateError) -> Status {
    match error {
        RotateError::Record(BootstrapError::WrongToken) => Status::failure(
            Reason::Conflict,
            "another server has rotated the token: restart this one with the new token, or ask that one",
        ),
        RotateError::Record(BootstrapError::Raced) => Status::failure(Reason::Conflict, error.to_string()),
        RotateError::Record(BootstrapError::Store(StoreError::Unavailable(_))) => Status::unavailable(format!(
            "whether the token was rotated is not known yet: {error}. This server finds out when the datastore answers \
             again; server/token below its data directory has the one that counts"
        )),
        other => hidden(other),
    }
}

/// What K3s says of a fault: a number, which the log has too.
fn hidden(error: &(dyn Error + 'static)) -> Status {
    let mut bytes = [0; 4];
    // Without randomness it is number 0: the log line still has the fault.
    let _ = SystemRandom::new().fill(&mut bytes);
    let id = u32::from_be_bytes(bytes) % 100_000;
    error!(id, error, "cannot rotate the token");
    Status::failure(Reason::InternalError, format!("token error ID {id:05}"))
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::join::passwd::Given;
    use crate::scratch::Scratch;
    use crate::store::memory::Memory;

    #[tokio::test(start_paused = true)]
    async fn what_the_disk_refused_is_finished_later_and_not_taken_for_another_servers_rotation() {
        let (scratch, store) = (Scratch::new("rotation-disk"), Arc::new(Memory::new()));
        let given = Given {
            token: Some(Secret::new("old")),
            agent_token: None,
        };
        let given = bootstrap::settle(&*store, &scratch.0, &given, Timestamp::now()).await;
        let passwd = Passwd::load_or_create(&scratch.0, &given.unwrap(), &"0".repeat(64)).unwrap();
        let passwd = Arc::new(passwd);
        let (rotation, rotator) = Rotation::new(store, Arc::clone(&passwd), &scratch.0, true);
        let mut working = JoinSet::new();
        working.spawn(rotator.run());
        let in_the_way = scratch.0.join("cred/.passwd.tmp");
        std::fs::create_dir(&in_the_way).unwrap();
        assert_eq!(rotation.to("new").await.unwrap_err().code, 500);
        sleep(RETRY * 3).await;
        assert!(passwd.check("server", "old").is_some() && !rotation.is_behind());
        std::fs::remove_dir(&in_the_way).unwrap();
        sleep(RETRY * 3).await;
        assert!(passwd.check("server", "new").is_some() && passwd.check("server", "old").is_none());
        assert!(!rotation.is_behind());
        assert_eq!(passwd::next(&scratch.0).unwrap(), None);
    }

    #[test]
    fn a_fault_is_a_number_for_the_caller_and_its_reason_stays_in_the_log() {
        let fault = RotateError::Passwd(PasswdError::Broken("/secret/place".into()));
        let status = status(&fault);
        assert_eq!(status.code, 500);
        let digits = status.message.strip_prefix("token error ID ").unwrap();
        assert!(
            digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit()),
            "{digits}"
        );
        for (error, code) in [
            (BootstrapError::WrongToken, 409),
            (BootstrapError::Raced, 409),
            (StoreError::Unavailable("away".to_owned()).into(), 503),
        ] {
            assert_eq!(super::status(&error.into()).code, code);
        }
    }
}
