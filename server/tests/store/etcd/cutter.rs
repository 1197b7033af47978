//! A way to etcd that breaks: it carries bytes until it is told to cut, and then loses the answers first.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Requests still go through for so long after answers do not.
const DEAF: Duration = Duration::from_millis(15);
/// Ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// The way.
pub struct Cutter {
    /// Where it begins.
    pub address: SocketAddr,
    cuts: watch::Sender<u64>,
    /// Pieces of answers that came through.
    answers: watch::Sender<u64>,
    _tasks: JoinSet<()>,
}

impl Cutter {
    /// A way to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, told) = watch::channel(0);
        let answers = watch::Sender::new(0);
        let answered = answers.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut ways = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    return;
                };
                let Ok(server) = TcpStream::connect(target).await else {
                    continue;
                };
                ways.spawn(carry(client, server, told.clone(), answered.clone()));
            }
        });
        Self {
            address,
            cuts,
            answers,
            _tasks: tasks,
        }
    }

    /// Waits until so many more pieces of answers have come through.
    pub async fn answers(&self, more: u64) {
        let mut answers = self.answers.subscribe();
        let wanted = *answers.borrow() + more;
        let coming = answers.wait_for(|count| *count >= wanted);
        timeout(PATIENCE, coming).await.unwrap().unwrap();
    }

    /// Breaks all connections of now.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn carry(client: TcpStream, server: TcpStream, mut cuts: watch::Receiver<u64>, answered: watch::Sender<u64>) {
    cuts.mark_unchanged();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let requests = copy(from_client, to_server, || ());
    tokio::pin!(requests);
    {
        let answers = copy(from_server, to_client, || answered.send_modify(|count| *count += 1));
        tokio::pin!(answers);
        tokio::select! {
            () = &mut requests => return,
            () = &mut answers => return,
            _ = cuts.changed() => {}
        }
        // The answers' halves are kept, and nothing is read from them any more.
        let _ = timeout(DEAF, &mut requests).await;
    }
}

async fn copy(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, copied: impl Fn()) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        copied();
    }
}
