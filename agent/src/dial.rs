//! A TCP connection to one of the addresses that a name has.
//!
//! A registration name often leads to every server, and the kernel says nothing about one whose machine is gone: so each
//! candidate gets a head start, and then the next is tried beside it. Which comes first is random, so that whoever finds
//! that a server accepts and then says nothing comes to another one when he tries again.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout};

/// Resolving a name and reaching one of its addresses, as long as one dial in K3s.
pub const LIMIT: Duration = Duration::from_secs(10);
/// How long a candidate may take to answer before the next is tried as well. One that refuses costs nothing; one whose
/// machine is gone must not hold a connection up for longer than fail-over may take.
pub const HEAD_START: Duration = Duration::from_millis(400);
/// Addresses of a name that are tried: the last one still gets some seconds of [`LIMIT`].
const ADDRESSES: usize = 16;

/// The answer to a look-up counts for so long: connections come in bursts, and a name that moves is dialed by its new address soon.
const KEPT: Duration = Duration::from_secs(1);

/// Idle for so long, a connection is probed (K3s' keep-alive).
const IDLE_S: u32 = 30;
const PROBE_EVERY_S: u32 = 5;
/// Probes without an answer that end it.
const PROBES: u32 = 3;

/// Finds the addresses of a `host:port`.
pub type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// As this machine resolves names. Whoever asks one and the same of these for a name that is being asked for shares the answer.
pub fn system() -> Resolve {
    shared(Arc::new(|name| {
        Box::pin(async move { Ok(lookup_host(name).await?.collect()) })
    }))
}

/// What a look-up found, and when.
type Found = (Result<Vec<SocketAddr>, (io::ErrorKind, String)>, Instant);

/// A look-up that several wait for.
type Looking = Shared<BoxFuture<'static, Found>>;

/// One look-up of a name at a time, and its answer to all who ask until [`KEPT`] after it.
///
/// A look-up holds one of the agent's few threads for files until the name server answers, which a silent one does not for many
/// seconds; that nobody waits any more does not end it.
fn shared(resolve: Resolve) -> Resolve {
    let asked: Arc<Mutex<HashMap<String, Looking>>> = Arc::default();
    Arc::new(move |name| {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, found| match found.peek() {
            Some((_, at)) => at.elapsed() < KEPT,
            // Nobody saw its end who waited no longer: that may be long ago.
            None => found.clone().now_or_never().is_none(),
        });
        let found = asked.entry(name).or_insert_with_key(|name| {
            let looking = resolve(name.clone());
            let found = looking.map(|found| (found.map_err(|error| (error.kind(), error.to_string())), Instant::now()));
            found.boxed().shared()
        });
        let found = found.clone();
        Box::pin(async move { found.await.0.map_err(|(kind, text)| io::Error::new(kind, text)) })
    })
}

/// Connects to `host:port`; the name is resolved each time: a server may have moved.
///
/// # Errors
/// That of the last address to fail; `TimedOut` after [`LIMIT`].
pub async fn connect(address: &str) -> io::Result<TcpStream> {
    connect_by(&system(), address).await
}

/// Has the kernel see whether the machine at the other end is there still, while nothing is said: else who only listens to one that
/// has lost its power does so for ever. It ends 45 s after the last word then, or up to 3 s later: the kernel's timers are coarse.
///
/// `TCP_USER_TIMEOUT`, which would do the same for what was said and not acknowledged, also ends a connection whose reader
/// pauses, as a person does at a log (Linux, `tcp_probe_timer`): there the kernel's own quarter of an hour has to do.
///
/// # Errors
/// The kernel's.
pub fn probe(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, KeepAlive, &true)?;
    setsockopt(stream, TcpKeepIdle, &IDLE_S)?;
    setsockopt(stream, TcpKeepInterval, &PROBE_EVERY_S)?;
    setsockopt(stream, TcpKeepCount, &PROBES)?;
    Ok(())
}

/// As [`connect`], with other names.
///
/// # Errors
/// As [`connect`].
pub async fn connect_by(resolve: &Resolve, address: &str) -> io::Result<TcpStream> {
    let connecting = async {
        let mut found = resolve(address.to_owned()).await?;
        let (random, many) = (RandomState::new().hash_one(()), found.len().max(1));
        found.rotate_left(usize::try_from(random % (many as u64)).unwrap_or(0));
        found.truncate(ADDRESSES);
        let connections: Vec<_> = found.into_iter().map(TcpStream::connect).collect();
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        race(connections)
            .await
            .map_err(|mut errors| errors.pop().unwrap_or_else(none))
    };
    timeout(LIMIT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The first candidate that succeeds: each is given [`HEAD_START`], or until it fails, before the next is begun beside it.
///
/// # Errors
/// All of them, when all fail.
pub async fn race<T, E, F: Future<Output = Result<T, E>>>(candidates: Vec<F>) -> Result<T, Vec<E>> {
    let mut candidates = candidates.into_iter();
    let mut begun = FuturesUnordered::new();
    let mut errors = Vec::new();
    loop {
        begun.extend(candidates.next());
        let left = candidates.len();
        let head_start = async move {
            match left {
                0 => std::future::pending().await,
                _ => sleep(HEAD_START).await,
            }
        };
        tokio::select! {
            ended = begun.next() => match ended {
                Some(Ok(won)) => return Ok(won),
                Some(Err(error)) => errors.push(error),
                None => return Err(errors),
            },
            () = head_start => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::socket::getsockopt;
    use nix::sys::socket::sockopt::TcpUserTimeout;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_kernel_sees_after_45_s_that_the_other_end_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        probe(&stream).unwrap();
        assert!(getsockopt(&stream, KeepAlive).unwrap());
        let idle = getsockopt(&stream, TcpKeepIdle).unwrap();
        let (every, probes) = (getsockopt(&stream, TcpKeepInterval), getsockopt(&stream, TcpKeepCount));
        assert_eq!(idle + every.unwrap() * probes.unwrap(), 45);
        assert_eq!(getsockopt(&stream, TcpUserTimeout).unwrap(), 0, "a reader may pause");
    }

    #[tokio::test]
    async fn each_address_of_a_name_comes_first_at_some_time() {
        let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let names: Resolve = Arc::new(move |_| Box::pin(async move { Ok(addresses.to_vec()) }));
        let mut reached = HashSet::new();
        for _ in 0..64 {
            let stream = connect_by(&names, "servers.test:6443").await.unwrap();
            reached.insert(stream.peer_addr().unwrap());
        }
        assert_eq!(reached.len(), 2);
    }

    #[tokio::test]
    async fn an_address_that_refuses_makes_way_and_the_last_error_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (works, refuses) = (listener.local_addr().unwrap(), "127.0.0.1:1".parse().unwrap());
        let both: Resolve = Arc::new(move |_| Box::pin(async move { Ok(vec![refuses, works]) }));
        for _ in 0..8 {
            assert_eq!(connect_by(&both, "x:1").await.unwrap().peer_addr().unwrap(), works);
        }
        let one: Resolve = Arc::new(move |_| Box::pin(async move { Ok(vec![refuses]) }));
        let error = connect_by(&one, "x:1").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let none: Resolve = Arc::new(|_| Box::pin(async { Ok(Vec::new()) }));
        assert_eq!(
            connect_by(&none, "x:1").await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_name_server_is_asked_once_however_many_dial() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let names = shared(Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        }));
        for _ in 0..2 {
            let dials = (0..50).map(|_| connect_by(&names, "servers.test:6443"));
            for dialed in futures_util::future::join_all(dials).await {
                assert_eq!(dialed.unwrap_err().kind(), io::ErrorKind::TimedOut);
            }
        }
        assert_eq!(
            asked.load(Ordering::Relaxed),
            1,
            "that nobody waits does not end a look-up"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_came_when_nobody_waited_any_more_is_not_given_to_who_asks_later() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let names = shared(Arc::new(move |_| {
            let count = counted.fetch_add(1, Ordering::Relaxed);
            let takes = if count == 0 { LIMIT * 2 } else { Duration::ZERO };
            // Goes on by itself, as a thread does.
            let over = Instant::now() + takes;
            Box::pin(async move {
                tokio::time::sleep_until(over).await;
                let last = u8::try_from(count).unwrap();
                Ok(vec![SocketAddr::from(([192, 0, 2, last], 6443))])
            })
        }));
        timeout(LIMIT, names("a:1".to_owned())).await.unwrap_err();
        sleep(LIMIT / 2).await;
        timeout(LIMIT / 4, names("a:1".to_owned())).await.unwrap_err();
        assert_eq!(asked.load(Ordering::Relaxed), 1, "it is still on its way");
        sleep(LIMIT * 100).await;
        let found = names("a:1".to_owned()).await.unwrap();
        assert_eq!(found, [SocketAddr::from(([192, 0, 2, 1], 6443))], "a name that moved");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_a_second_and_for_its_name() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let names = shared(Arc::new(move |name| {
            let count = counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                match count {
                    0 => Err(io::Error::other(name)),
                    _ => Ok(vec![SocketAddr::from(([192, 0, 2, 1], 6443))]),
                }
            })
        }));
        for _ in 0..2 {
            assert_eq!(names("a:1".to_owned()).await.unwrap_err().to_string(), "a:1");
        }
        assert!(names("b:1".to_owned()).await.is_ok());
        sleep(KEPT).await;
        assert!(names("a:1".to_owned()).await.is_ok(), "asked anew");
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }
}
