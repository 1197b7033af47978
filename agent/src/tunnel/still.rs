//! Whether the server at the far end of a tunnel lives, and what the balancer is told of it.
//!
//! The kernel of a machine whose server stands still goes on accepting and acknowledging, and one that is gone says nothing at
//! all: so a server is asked for a sign of life through its tunnel, when a connection is wanted to it, and when some are open and
//! nothing was heard of it for a while. One that gives none is left only for another one that does: a way that is slow for all
//! of them is no reason to change.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use super::stream::Tunnel;
use crate::balancer::{Balancers, Pulse};

/// A server that carries connections and of which nothing was heard for so long is asked. Shorter than between two pings
/// (`role.rs`): connections are elsewhere 6 s after it fell silent, and go on well before 10 s are over.
const QUIET: Duration = Duration::from_secs(3);
/// A server that was asked and gives no sign of life for so long stands still, or cannot be reached: other ways are better.
/// Longer than a bad link takes for a word again and again.
const PATIENCE: Duration = Duration::from_secs(3);
/// So long a server that was left and had only been slow is given more time.
const CALM: Duration = Duration::from_secs(600);

/// Doublings of [`QUIET`]; after so many the tunnel is given up before (`role.rs`).
const MOST: u32 = 3;

/// Leaves a server that stands still, and comes back to it when it moves. `asked`: a connection is wanted to it. `ready`: what the
/// server has said of itself.
pub async fn leave_when_still(
    balancer: &Balancers,
    address: &str,
    tunnel: &Tunnel,
    asked: &Notify,
    ready: &AtomicBool,
) -> Infallible {
    let mut leniency = Leniency::default();
    loop {
        let quiet = tokio::select! {
            () = asked.notified() => false,
            () = quiet(balancer, address, tunnel, &leniency) => true,
        };
        let stands_still = async {
            sleep(PATIENCE).await;
            balancer.another_lives(address).await;
        };
        tokio::select! {
            () = tunnel.answers() => continue,
            () = stands_still => {}
        }
        warn!(
            peer = address,
            "the server stands still; connections go to others where there are any"
        );
        balancer.report(address, false);
        tunnel.answers().await;
        if quiet {
            leniency.left_in_vain(Instant::now());
        }
        stands(balancer, address, ready.load(Ordering::Relaxed));
    }
}

/// Resolves when a server that carries connections, which could go to another one, has not been heard of for a while.
async fn quiet(balancer: &Balancers, address: &str, tunnel: &Tunnel, leniency: &Leniency) {
    loop {
        let now = Instant::now();
        let until = Instant::from_std(tunnel.last_heard()) + leniency.quiet(now);
        match until <= now {
            true if balancer.could_leave(address) => return,
            true => sleep(QUIET).await,
            false => sleep_until(until).await,
        }
    }
}

/// How often a tunnel was left of late although its server lived. A copy that fills a narrow way holds pings up in the kernel, longer
/// than those of other tunnels: connections must not go to and fro for that.
#[derive(Clone, Copy, Debug, Default)]
struct Leniency {
    last: Option<(Instant, u32)>,
}

impl Leniency {
    fn count(&self, now: Instant) -> u32 {
        let recent = self.last.filter(|(at, _)| now.saturating_duration_since(*at) < CALM);
        recent.map_or(0, |(_, count)| count)
    }

    /// How long the server may say nothing before it is asked: twice as long each time.
    fn quiet(&self, now: Instant) -> Duration {
        QUIET * 2u32.saturating_pow(self.count(now).min(MOST))
    }

    fn left_in_vain(&mut self, now: Instant) {
        self.last = Some((now, self.count(now).saturating_add(1)));
    }
}

/// Passes on what a server says of itself.
pub fn stands(balancer: &Balancers, address: &str, ready: bool) {
    match ready {
        true => balancer.report(address, true),
        false => balancer.unready(address),
    }
}

/// What asks for a sign of life through a tunnel, and tells `asked` so.
pub fn pulse(tunnel: &Tunnel, asked: &Arc<Notify>) -> Pulse {
    let (tunnel, asked) = (tunnel.clone(), Arc::clone(asked));
    Arc::new(move || {
        asked.notify_one();
        let tunnel = tunnel.clone();
        Box::pin(async move { tunnel.answers().await })
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::StreamExt as _;
    use futures_util::future::BoxFuture;
    use tokio::io::DuplexStream;
    use tokio::time::timeout;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol;

    use super::*;
    use crate::balancer::Balancer;
    use crate::tunnel::link;
    use crate::tunnel::session::Role;

    /// The agent's end of a tunnel to `a:1`, of which the balancer knows, and `b:1` beside it.
    struct Here {
        one: Balancer,
        balancer: Balancers,
        tunnel: Tunnel,
        asked: Arc<Notify>,
        ready: AtomicBool,
    }

    impl Here {
        fn new() -> Self {
            let one = Balancer::new("a:1", &["a:1".to_owned(), "b:1".to_owned()], 0);
            let balancer = Balancers::from(one.clone());
            balancer.report("a:1", true);
            balancer.report("b:1", true);
            one.dialed("a:1");
            Self {
                one,
                balancer,
                tunnel: Tunnel::new(Role::Listener, 1),
                asked: Arc::default(),
                ready: AtomicBool::new(true),
            }
        }

        fn first(&self) -> String {
            self.one.order()[0].clone()
        }

        /// Runs the tunnel for as long as the story lasts.
        async fn runs(&self, near: DuplexStream, story: impl Future<Output = ()>) {
            tokio::select! {
                error = link::run(link::Socket::new(near), &self.tunnel, |_| {}) => panic!("{error}"),
                never = leave_when_still(&self.balancer, "a:1", &self.tunnel, &self.asked, &self.ready) => match never {},
                () = story => {}
            }
        }
    }

    type Far = WebSocketStream<DuplexStream>;

    async fn link() -> (DuplexStream, Far) {
        let (near, far) = tokio::io::duplex(1 << 20);
        (
            near,
            WebSocketStream::from_raw_socket(far, protocol::Role::Server, None).await,
        )
    }

    /// Whoever reads answers pings.
    async fn moves(far: &mut Far) {
        while far.next().await.is_some() {}
    }

    const fn silent() -> fn() -> BoxFuture<'static, ()> {
        || Box::pin(pending())
    }

    const fn lives() -> fn() -> BoxFuture<'static, ()> {
        || Box::pin(ready(()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stands_still_is_left_and_taken_back_when_it_moves() {
        let (here, (near, mut far)) = (Here::new(), link().await);
        let pulse = pulse(&here.tunnel, &here.asked);
        here.runs(near, async {
            tokio::select! {
                () = pulse() => {}
                () = moves(&mut far) => panic!("the tunnel ended"),
            }
            let _ = timeout(PATIENCE, moves(&mut far)).await;
            assert_eq!(here.first(), "a:1");
            let felt = here.balancer.feel("b:1", Arc::new(silent()));
            assert!(timeout(PATIENCE * 2, pulse()).await.is_err());
            assert_eq!(here.first(), "a:1", "all are slow");
            let _ = timeout(PATIENCE, moves(&mut far)).await;
            drop(felt);
            let _felt = here.balancer.feel("b:1", Arc::new(lives()));
            assert!(timeout(PATIENCE * 2, pulse()).await.is_err(), "it stands still");
            assert_eq!(here.first(), "b:1");
            let _ = timeout(PATIENCE, moves(&mut far)).await;
            here.balancer.report("b:1", false);
            assert_eq!(here.first(), "a:1", "it works again");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn open_connections_leave_a_server_that_falls_silent_before_anybody_asks() {
        let (here, (near, mut far)) = (Here::new(), link().await);
        here.runs(near, async {
            // No connection would gain by leaving it: none is open, or there is no other way, or that is silent, too.
            let felt = here.balancer.feel("b:1", Arc::new(lives()));
            sleep(QUIET * 3).await;
            assert_eq!(here.first(), "a:1", "nobody uses it");
            let _ = timeout(QUIET, moves(&mut far)).await;
            drop(felt);
            let mut open = here.one.cuts("a:1");
            sleep(QUIET * 3).await;
            assert_eq!(here.first(), "a:1", "it is the only one");
            let _ = timeout(QUIET, moves(&mut far)).await;
            let felt = here.balancer.feel("b:1", Arc::new(silent()));
            sleep(QUIET * 3).await;
            assert_eq!(here.first(), "a:1", "all are silent");
            let _ = timeout(Duration::from_secs(60), moves(&mut far)).await;
            drop(felt);
            assert!(!open.has_changed().unwrap());

            let _felt = here.balancer.feel("b:1", Arc::new(lives()));
            let _ = timeout(Duration::from_secs(60), moves(&mut far)).await;
            assert!(!open.has_changed().unwrap(), "it answers");
            let begun = Instant::now();
            open.changed().await.unwrap();
            let took = begun.elapsed();
            assert!(took <= QUIET + PATIENCE + Duration::from_millis(10), "{took:?}");
            assert_eq!(here.first(), "b:1");
            sleep(Duration::from_secs(10)).await;
            assert!(!open.has_changed().unwrap(), "once is enough");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_is_slow_at_times_is_not_left_again_and_again() {
        let (here, (near, mut far)) = (Here::new(), link().await);
        let _felt = here.balancer.feel("b:1", Arc::new(lives()));
        let mut open = here.one.cuts("a:1");
        let mut left = Vec::new();
        here.runs(near, async {
            for round in 0..20 {
                let _ = timeout(Duration::from_secs(1), moves(&mut far)).await;
                sleep(Duration::from_secs(17)).await;
                if open.has_changed().unwrap() {
                    open.mark_unchanged();
                    left.push(round);
                }
            }
            assert_eq!(left, [0, 1, 2]);
            let _ = timeout(CALM, moves(&mut far)).await;
            sleep(QUIET + PATIENCE + Duration::from_secs(1)).await;
            assert!(open.has_changed().unwrap(), "that was long ago");
        })
        .await;
    }
}
