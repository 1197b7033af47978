//! Peers that send nonsense, take nothing, or do not read one stream of a hundred; at each end of a tunnel.

use std::convert::Infallible;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex, split};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::link::{self, LinkError, Socket};
use super::passing::PASSING_MAX;
use super::session::{Role, Session};
use super::stream::{Opened, Stream, Tunnel};
use crate::chance::{Random, simulate};
use crate::wire::frame::Frame;
use crate::wire::fuzz::{frame, spoil};

const ROLES: [Role; 2] = [Role::Dialer, Role::Listener];

#[test]
fn a_session_outlives_or_refuses_any_frames_and_answers_each_at_most_so_often() {
    simulate(10_000, |seed| {
        let mut random = Random::new(seed);
        let now = std::time::Instant::now();
        let role = ROLES[random.next(2)];
        let mut session = Session::new(role, 1, now);
        for _ in 0..random.next(60) {
            let mut bytes = frame(&mut random).encode().to_vec();
            if random.once_in(3) {
                spoil(&mut random, &mut bytes);
            }
            let Ok(frame) = Frame::decode(&bytes.into()) else {
                continue;
            };
            if session.receive(frame, now).is_err() {
                return;
            }
            if role == Role::Dialer && random.once_in(8) {
                let _ = session.dial("127.0.0.1:10250");
            }
        }
        // One answer to a frame, and what its own streams have to say; it never goes on for ever.
        let mut wire = Vec::new();
        let outputs = (0..1000).take_while(|_| {
            wire.clear();
            session.output(&mut wire, || Ok::<_, Infallible>(None)).unwrap();
            !wire.is_empty()
        });
        let outputs = outputs.count();
        assert!(outputs < 1000, "{outputs}");
    });
}

/// A peer that is there, as its pings and pongs show, and takes not a byte.
#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up_half_a_minute_after_the_first_frame_it_did_not_take() {
    for role in ROLES {
        let (near, mut far) = duplex(4096);
        // An empty ping, as a client masks it; an empty pong.
        let sign: &[u8] = match role {
            Role::Dialer => &[0x89, 0x80, 0, 0, 0, 0],
            Role::Listener => &[0x8a, 0x00],
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                sleep(Duration::from_secs(3)).await;
                if far.write_all(sign).await.is_err() {
                    return;
                }
            }
        });
        let tunnel = Tunnel::new(role, 1);
        if role == Role::Dialer {
            let mut stream = tunnel.dial("127.0.0.1:10250").unwrap();
            tasks.spawn(async move { while stream.write_all(&[7; 4096]).await.is_ok() {} });
        }
        let began = Instant::now();
        let run = link::run(Socket::new(near), &tunnel, drop);
        // A listener only pings: 4 KiB of them take hours.
        let limit = Duration::from_secs(match role {
            Role::Dialer => 40,
            Role::Listener => 6 * 3600,
        });
        let error = timeout(limit, run).await.expect("it hangs");
        assert!(matches!(error, LinkError::Stuck), "{role:?}: {error}");
        assert!(began.elapsed() >= Duration::from_secs(30), "{role:?}");
        assert!(tunnel.is_over());
        // Whoever wrote learns of it.
        if role == Role::Dialer {
            while tasks.len() > 1 {
                tasks.join_next().await;
            }
        }
    }
}

/// Gives back what it gets.
async fn echo(stream: Stream) {
    let (mut reader, mut writer) = split(stream);
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

/// Both ends of a tunnel, with `serve` on each stream that the dialer opens.
fn connected<F>(mut serve: impl FnMut(Stream) -> F + Send + 'static, tasks: &mut JoinSet<()>) -> Tunnel
where
    F: Future<Output = ()> + Send + 'static,
{
    let (near, far) = duplex(64 << 10);
    let dialer = Tunnel::new(Role::Dialer, 1);
    let tunnel = dialer.clone();
    tasks.spawn(async move {
        link::run(Socket::new(near), &tunnel, drop).await;
    });
    tasks.spawn(async move {
        let tunnel = Tunnel::new(Role::Listener, 1);
        let mut streams = JoinSet::new();
        let socket = Socket::new(far);
        let serve = |opened: Opened| drop(streams.spawn(serve(opened.stream)));
        link::run(socket, &tunnel, serve).await;
    });
    dialer
}

/// Writes until nothing more is taken.
async fn fill(writer: &mut (impl AsyncWrite + Unpin)) {
    fill_with(writer, 4096).await;
}

async fn fill_with(writer: &mut (impl AsyncWrite + Unpin), size: usize) {
    let bytes = vec![7; size];
    let filling = async { while writer.write_all(&bytes).await.is_ok() {} };
    assert!(
        timeout(Duration::from_secs(5), filling).await.is_err(),
        "somebody takes everything"
    );
}

async fn ninety_nine_go_on(tunnel: &Tunnel) {
    let sent: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let mut others = JoinSet::new();
    for _ in 0..99 {
        let (mut reader, mut writer) = split(tunnel.dial("127.0.0.1:10250").unwrap());
        let sent = sent.clone();
        others.spawn(async move {
            let mut got = vec![0; sent.len()];
            let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut got));
            wrote.unwrap();
            read.unwrap();
            assert_eq!(got, sent);
        });
    }
    while let Some(done) = others.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_stuck_at_the_agent_holds_nobody_else_up() {
    let mut tasks = JoinSet::new();
    let mut first = true;
    let serve = move |stream| {
        let stuck = std::mem::take(&mut first);
        async move {
            match stuck {
                // Never reads, and keeps the stream.
                true => std::future::pending::<()>().await,
                false => echo(stream).await,
            }
        }
    };
    let tunnel = connected(serve, &mut tasks);
    let mut stuck = tunnel.dial("127.0.0.1:10250").unwrap();
    fill(&mut stuck).await;
    timeout(Duration::from_secs(60), ninety_nine_go_on(&tunnel))
        .await
        .expect("they wait");
    tasks.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_stuck_at_the_server_holds_nobody_else_up() {
    let mut tasks = JoinSet::new();
    let tunnel = connected(echo, &mut tasks);
    let (stuck_reader, mut writer) = split(tunnel.dial("127.0.0.1:10250").unwrap());
    fill(&mut writer).await;
    timeout(Duration::from_secs(60), ninety_nine_go_on(&tunnel))
        .await
        .expect("they wait");
    drop(stuck_reader);
    tasks.shutdown().await;
}

/// Those that end while their writers wait for their turn may be all whose turn it is.
#[tokio::test(start_paused = true)]
async fn writers_go_on_when_many_others_are_cut_off_among_them() {
    for (streams, kept) in [(100, 3), (100, 50), (40, 1)] {
        let mut tasks = JoinSet::new();
        let pour = |mut stream: Stream| async move { while stream.write_all(&[7; 40_000]).await.is_ok() {} };
        let tunnel = connected(pour, &mut tasks);
        let mut readers = JoinSet::new();
        for number in 0..streams {
            let mut stream = tunnel.dial("127.0.0.1:10250").unwrap();
            readers.spawn(async move {
                let most = if number % (streams / kept) == 0 {
                    4 << 20
                } else {
                    number << 14
                };
                let mut buffer = vec![0; most];
                stream.read_exact(&mut buffer).await.unwrap();
            });
        }
        timeout(Duration::from_secs(4), readers.join_all())
            .await
            .unwrap_or_else(|_| panic!("{kept} of {streams} wait"));
        tasks.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_goes_before_what_streams_have_to_say() {
    let tunnel = Tunnel::new(Role::Dialer, 1);
    let (mut stream, mut wire) = (tunnel.dial("127.0.0.1:10250").unwrap(), Vec::new());
    tunnel.fill(false, &mut wire).unwrap();
    fill_with(&mut stream, 40_000).await;
    wire.clear();
    tunnel.say("here");
    tunnel.fill(false, &mut wire).unwrap();
    assert!(wire.starts_with(b"\x89\x04here"), "{:x?}", &wire[..16]);
    assert!(wire.len() > PASSING_MAX, "{}", wire.len());
}

/// What is read slowly by its peer never has nothing to send.
#[tokio::test(start_paused = true)]
async fn who_leaves_goes_although_a_stream_pours() {
    let (near, mut far) = duplex(4096);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut some = [0; 4096];
        while far.read(&mut some).await.is_ok_and(|count| count > 0) {
            sleep(Duration::from_millis(10)).await;
            far.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.unwrap_or_default();
        }
    });
    let tunnel = Tunnel::new(Role::Dialer, 1);
    let mut stream = tunnel.dial("127.0.0.1:10250").unwrap();
    tasks.spawn(async move { while stream.write_all(&[7; 40_000]).await.is_ok() {} });
    tunnel.leave();
    let run = link::run(Socket::new(near), &tunnel, drop);
    let error = timeout(Duration::from_secs(30), run).await.expect("it stays");
    assert!(matches!(error, LinkError::Left), "{error}");
    tasks.shutdown().await;
}
