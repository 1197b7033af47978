//! The server's end of the control socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::wire::status::Status;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{info, warn};

use super::{LONGEST, Reply, Request, backed_up, restored, socket};
use crate::cache::Cache;
use crate::controllers::{Note, tell};
use crate::join::bootstrap;
use crate::request::Client;
use crate::store::sql::sqlite::{Backup, BackupError, Progress, Restored, Sqlite};
use crate::store::{Range, Store};

/// Who connects has something to ask.
const ASKING: Duration = Duration::from_secs(10);
/// Administrators at a time.
const MOST: usize = 8;
/// Between two words of how far it is.
const PROGRESS: Duration = Duration::from_secs(1);
/// For the cache to have loaded what was restored.
const LOADED: Duration = Duration::from_secs(30);
/// For a copy that the server makes by itself to be over.
const TURN: Duration = Duration::from_secs(120);
/// After a connection could not be taken (the process has too many files open), or another copy is being made.
const AGAIN: Duration = Duration::from_secs(1);

/// The socket, as long as it is served.
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// Makes it, in the place of one that a killed server left. The caller has the data directory.
    ///
    /// # Errors
    /// The system's.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join("server/control.sock");
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let (_folder, short) = socket(data_dir)?;
        let listener = UnixListener::bind(short)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the objects that a start makes.
pub type MakeFirst = Box<dyn Fn() -> BoxFuture<'static, Result<(), Status>> + Send + Sync>;

/// What the requests are about.
pub struct Desk {
    store: Arc<dyn Store>,
    cache: Cache,
    client: Client,
    data_dir: PathBuf,
    node: String,
    /// What backs up the datastore, where that is not for us to do.
    tool: &'static str,
    first: MakeFirst,
    one_restore: Mutex<()>,
}

impl Desk {
    /// `node`: whose Events tell of a restore. `tool`: what backs up a datastore that is not the embedded one. `first`: called
    /// after a restore, for a backup may be of an older version or another machine.
    pub fn new(
        store: Arc<dyn Store>,
        cache: Cache,
        client: Client,
        data_dir: &Path,
        node: &str,
        tool: &'static str,
        first: MakeFirst,
    ) -> Self {
        Self {
            store,
            cache,
            client,
            data_dir: data_dir.to_owned(),
            node: node.to_owned(),
            tool,
            first,
            one_restore: Mutex::default(),
        }
    }

    /// Serves the socket until it is dropped; what is under way then comes to its end all the same.
    pub async fn serve(self: Arc<Self>, door: Door) {
        let mut asking = JoinSet::new();
        loop {
            while asking.len() >= MOST {
                let _ = asking.join_next().await;
            }
            tokio::select! {
                accepted = door.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let desk = Arc::clone(&self);
                        asking.spawn(async move { desk.talk(stream).await });
                    }
                    Err(error) => {
                        warn!(error = %error, "cannot take a connection of the control socket");
                        sleep(AGAIN).await;
                    }
                },
                Some(_) = asking.join_next() => {}
            }
        }
    }

    async fn talk(&self, stream: UnixStream) {
        let (from, mut to) = stream.into_split();
        let mut line = String::new();
        let mut from = BufReader::new(from.take(LONGEST));
        let Ok(Ok(_)) = timeout(ASKING, from.read_line(&mut line)).await else {
            return;
        };
        let (progress, mut ticks) = (Arc::<Progress>::default(), interval(PROGRESS));
        ticks.reset();
        let work = async {
            match serde_json::from_str(&line) {
                Ok(request) => self.carry_out(request, &progress).await,
                Err(error) => Err(format!("the running server does not understand this request: {error}")),
            }
        };
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                _ = ticks.tick() => {
                    let (done, of) = progress.now();
                    if of > 0 {
                        say(&mut to, &Reply::Progress { done, of }).await;
                    }
                }
            }
        };
        say(&mut to, &outcome.map_or_else(Reply::Failed, Reply::Done)).await;
    }

    async fn carry_out(&self, request: Request, progress: &Arc<Progress>) -> Result<String, String> {
        let Some(sqlite) = self.store.embedded() else {
            return Err(format!(
                "this server keeps its state in a datastore of its own kind, which k3s neither backs up nor restores: {}",
                self.tool
            ));
        };
        match request {
            Request::BackUp { to } => {
                let to = to.unwrap_or_else(|| sqlite.place_for_a_backup(Timestamp::now().as_second()));
                let made = back_up(sqlite, to, progress).await.map_err(|error| error.to_string())?;
                info!(file = %made.path.display(), revision = %made.revision, "backed up the datastore");
                Ok(backed_up(&made, &self.data_dir))
            }
            Request::Restore { from } => {
                let Ok(_alone) = self.one_restore.try_lock() else {
                    return Err("another restore is under way".to_owned());
                };
                let put = self.restore(sqlite, from).await?;
                Ok(restored(&put) + "the server runs on with it\n")
            }
        }
    }

    async fn restore(&self, sqlite: &Sqlite, from: PathBuf) -> Result<Restored, String> {
        let file = from.display().to_string();
        let staged = sqlite.stage(from).await.map_err(|error| error.to_string())?;
        let reading = tokio::task::spawn_blocking(move || (staged.under(bootstrap::PREFIX), staged));
        let (theirs, staged) = reading.await.map_err(|error| error.to_string())?;
        let theirs = theirs.map_err(|error| error.to_string())?;
        let present = Range {
            prefix: bootstrap::PREFIX.to_owned(),
            ..Range::default()
        };
        let present = self
            .store
            .list(present, None)
            .await
            .map_err(|error| error.to_string())?;
        let present = present.entries.into_iter().map(|entry| (entry.key, entry.value));
        if !present.eq(theirs) {
            return Err(format!(
                "{file} was made before the cluster's token or authorities changed, or by another cluster; a running server \
                 cannot change its identity: stop it (systemctl stop k3s; its pods go on), restore, and start it with the \
                 token of that time"
            ));
        }
        info!(file, revision = %staged.revision, keys = staged.keys, "putting a backup in the place of the present state");
        let put = sqlite.restore(staged).await.map_err(|error| error.to_string())?;
        if timeout(LOADED, self.cache.reached(put.goes_on)).await.is_err() {
            warn!("what was restored is not loaded yet");
        }
        if let Err(status) = (self.first)().await {
            warn!(
                error = status.message,
                "what a start makes is missing after the restore: restart the server"
            );
        }
        let message = format!(
            "{file} was put in the place of the cluster's state, as of revision {}: what was written after it is gone",
            put.revision
        );
        warn!("{message}");
        warn_of(&self.client, &self.node, "DatastoreRestored", message).await;
        Ok(put)
    }
}

/// Waits for its turn while the server makes a copy by itself.
async fn back_up(sqlite: &Sqlite, to: PathBuf, progress: &Arc<Progress>) -> Result<Backup, BackupError> {
    let begun = Instant::now();
    loop {
        match sqlite.back_up(to.clone(), Arc::clone(progress)).await {
            Err(BackupError::Busy) if begun.elapsed() < TURN => sleep(AGAIN).await,
            outcome => return outcome,
        }
    }
}

/// A warning to whoever looks at the Events of this machine's node.
pub async fn warn_of(client: &Client, node: &str, reason: &'static str, message: String) {
    let note = Note {
        kind: "Warning",
        reason,
        message,
        // As a kubelet names its node: the name for the uid.
        about: json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}),
        component: "k3s",
    };
    tell(client, &note, Timestamp::now()).await;
}

/// Who has gone does not hear it.
async fn say(to: &mut (impl tokio::io::AsyncWrite + Unpin), reply: &Reply) {
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    let _ = to.write_all(&line).await;
}
