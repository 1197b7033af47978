//! Which server runs controllers and scheduler: the holder of the Lease `kube-system/k3s`.
//!
//! [`Election`] decides (pure): what the Lease shows and the monotonic time in, what to do next out. A holder is taken to
//! be gone when his Lease was not seen to change for [`EXPIRY`]; he himself has stopped acting after [`LEAD`], which is
//! shorter. One Lease for controllers and scheduler together, under the name of K3s' own lock: they live in one process
//! and move together. Rules as in client-go v1.36 `tools/leaderelection/leaderelection.go`; its times are 15, 10 and 2 s.

use agent::wire::object::{integer, text};
use agent::wire::selector::Fields;
use agent::wire::status::{Reason, Status};
use agent::wire::time::micros;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::pulse::Pulse;
use super::{EXPIRY, LEAD, NAMESPACE, Peers, RENEW, RETRY, held, stamp};
use crate::cache::Filter;

/// Name of the Lease.
const NAME: &str = "k3s";

/// What a Lease shows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Record<'r> {
    /// Empty: given up.
    holder: &'r str,
    /// Another one after each write.
    stamp: &'r str,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Write the Lease as ours, over what was seen.
    Write,
    /// Look again when it changes, or then.
    Wait(Instant),
}

/// One server's part in the election.
#[derive(Debug)]
struct Election {
    me: String,
    seen: Option<Pulse>,
    /// When our last write that was acknowledged had been sent.
    led_since: Option<Instant>,
}

impl Election {
    fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            seen: None,
            led_since: None,
        }
    }

    /// Decides by what the Lease shows now.
    fn observe(&mut self, record: Option<Record<'_>>, now: Instant) -> Step {
        let Some(Record { holder, stamp }) = record else {
            self.seen = None;
            self.led_since = None;
            return Step::Write;
        };
        let seen = match &mut self.seen {
            Some(seen) => {
                seen.beat(stamp, now);
                seen
            }
            none => none.insert(Pulse::new(stamp, now)),
        };
        if holder == self.me {
            return match self.led_since {
                Some(since) if now < since + RENEW => Step::Wait(since + RENEW),
                _ => Step::Write,
            };
        }
        // Somebody else has it: whatever we believed is over.
        self.led_since = None;
        let ends = seen.ends(EXPIRY);
        match holder.is_empty() || now >= ends {
            true => Step::Write,
            false => Step::Wait(ends),
        }
    }

    /// The Lease was written as ours; `sent`: the moment before.
    fn won(&mut self, sent: Instant) {
        self.led_since = Some(sent);
    }

    /// Until when this server may act.
    fn leads_until(&self) -> Option<Instant> {
        self.led_since.map(|since| since + LEAD)
    }

    fn leads(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }
}

impl Peers {
    /// Stands for election until dropped. While this server leads, what `start` puts into the set runs; for as long as that
    /// is certain [`Peers::leaders_api`] writes.
    pub async fn stand(self, start: impl Fn(&mut JoinSet<()>)) {
        let mut election = Election::new(&self.holder);
        let mut acting = JoinSet::new();
        let mut watch = None;
        loop {
            let wake = self.turn(&mut election).await;
            self.fence.set(election.leads_until());
            match (election.leads(Instant::now()), acting.is_empty()) {
                (true, true) => {
                    info!("this server leads: controllers and scheduler run here");
                    start(&mut acting);
                }
                (false, false) => {
                    warn!("this server leads no longer, controllers and scheduler stop here");
                    acting.shutdown().await;
                }
                (true, false) | (false, true) => {}
            }
            // A lead that is over wakes nobody any more.
            let end = election.leads_until().filter(|end| *end > Instant::now());
            let until = end.map_or(wake, |end| end.min(wake));
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.change(filter(), &mut watch) => {}
            }
        }
    }

    /// Looks once, and writes if it is our turn. Returns when to look again.
    async fn turn(&self, election: &mut Election) -> Instant {
        let lease = match self.lease(NAME).await {
            Ok(lease) => lease,
            Err(status) => {
                warn!(error = %status, "cannot see who leads");
                return Instant::now() + RETRY;
            }
        };
        let record = lease.as_ref().map(|lease| Record {
            holder: text(lease, &["spec", "holderIdentity"]),
            stamp: stamp(lease),
        });
        let sent = Instant::now();
        let wait = match election.observe(record, sent) {
            Step::Wait(until) => return until,
            Step::Write => sent + RETRY,
        };
        // A datastore that stalls must not keep us from noticing that our time is up.
        let deadline = election.leads_until().filter(|end| *end > sent).unwrap_or(sent + RENEW);
        match timeout_at(deadline, self.hold(lease.as_ref(), self.lead(lease.as_ref()))).await {
            Ok(Ok(())) => {
                election.won(sent);
                sent + RENEW
            }
            Ok(Err(status)) if status.is(Reason::Conflict) || status.is(Reason::AlreadyExists) => {
                debug!("another server was faster");
                sent + RETRY / 4
            }
            Ok(Err(status)) => {
                debug!(error = %status, "cannot hold the lead");
                wait
            }
            Err(_) => wait,
        }
    }

    /// Gives the lead up, so that another server has it at once.
    pub(super) async fn release(&self) -> Result<(), Status> {
        let Some(lease) = self.lease(NAME).await? else {
            return Ok(());
        };
        if text(&lease, &["spec", "holderIdentity"]) != self.holder {
            return Ok(());
        }
        let mut given_up = self.lead(Some(&lease));
        if let Some(spec) = given_up.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("holderIdentity".to_owned(), "".into());
            spec.insert("leaseDurationSeconds".to_owned(), 1.into());
        }
        match self.hold(Some(&lease), given_up).await {
            Err(status) if status.is(Reason::Conflict) => Ok(()),
            outcome => outcome,
        }
    }

    /// The Lease as ours, after what it was.
    fn lead(&self, present: Option<&Value>) -> Value {
        let transitions = present.and_then(|lease| integer(lease, &["spec", "leaseTransitions"]));
        let (acquired, transitions) = match present {
            Some(lease) if text(lease, &["spec", "holderIdentity"]) == self.holder => (
                text(lease, &["spec", "acquireTime"]).to_owned(),
                transitions.unwrap_or(0),
            ),
            Some(_) => (
                micros(Timestamp::now()),
                transitions.map_or(0, |number| number.saturating_add(1)),
            ),
            None => (micros(Timestamp::now()), 0),
        };
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": NAME, "namespace": NAMESPACE },
            "spec": held(&self.holder, &acquired, transitions),
        })
    }
}

fn filter() -> Filter {
    Filter {
        fields: Fields::parse(&format!("metadata.name={NAME}")).unwrap_or_default(),
        ..Filter::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn by<'r>(holder: &'r str, stamp: &'r str) -> Option<Record<'r>> {
        Some(Record { holder, stamp })
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_at_once() {
        let now = Instant::now();
        assert_eq!(Election::new("a").observe(None, now), Step::Write);
        assert_eq!(Election::new("a").observe(by("", "7"), now), Step::Write);
    }

    #[test]
    fn a_silent_holder_is_waited_for_and_then_followed() {
        let (mut election, start) = (Election::new("a"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(
            election.observe(by("b", "1"), at(0)),
            Step::Wait(at(10)),
            "however old it says it is"
        );
        assert_eq!(election.observe(by("b", "2"), at(9)), Step::Wait(at(19)), "it lives");
        assert_eq!(election.observe(by("b", "2"), at(18)), Step::Wait(at(19)));
        assert_eq!(election.observe(by("b", "2"), at(19)), Step::Write);
    }

    #[test]
    fn a_leader_renews_and_stops_acting_when_it_cannot() {
        let (mut election, start) = (Election::new("a"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        election.observe(None, at(0));
        assert!(!election.leads(at(0)));
        election.won(at(0));
        assert_eq!(election.observe(by("a", "1"), at(1)), Step::Wait(at(3)));
        assert_eq!(election.observe(by("a", "1"), at(3)), Step::Write);
        // Nothing is acknowledged any more.
        assert!(election.leads(at(6)) && !election.leads(at(7)));
        assert_eq!(
            election.observe(by("a", "1"), at(30)),
            Step::Write,
            "nobody took it: ours again, once written"
        );
        assert!(!election.leads(at(30)));
    }

    #[test]
    fn who_sees_another_holder_leads_no_longer() {
        let (mut election, now) = (Election::new("a"), Instant::now());
        election.won(now);
        assert!(election.leads(now));
        election.observe(by("b", "2"), now);
        assert!(!election.leads(now));
    }

    /// Who holds it, and how often it was written.
    type Lease = Option<(String, u32)>;

    /// A server as the law below sees it.
    struct Server {
        election: Election,
        /// The Lease when it last looked.
        view: Lease,
        /// When it sent the write whose answer is on its way.
        unheard: Option<Instant>,
    }

    impl Server {
        fn new(name: &str) -> Self {
            Self {
                election: Election::new(name),
                view: None,
                unheard: None,
            }
        }

        /// Decides by its view; answers whether it has written.
        fn turn(&mut self, lease: &mut Lease, now: Instant) -> bool {
            let seen = self.view.as_ref().map(|(holder, number)| (holder, number.to_string()));
            let record = seen.as_ref().map(|(holder, stamp)| Record { holder, stamp });
            let number = |lease: &Lease| lease.as_ref().map_or(0, |(_, number)| *number);
            if self.election.observe(record, now) != Step::Write || number(&self.view) != number(lease) {
                return false;
            }
            *lease = Some((self.election.me.clone(), number(lease) + 1));
            true
        }
    }

    fn both_lead(servers: &[Server; 2], now: Instant) -> bool {
        servers.iter().all(|server| server.election.leads(now))
    }

    proptest! {
        /// Two servers, each stopping and going on as it likes, each with a view of the Lease that may be old. A write counts
        /// only over the Lease as it is (compare-and-swap), and its answer is heard a turn later or never: never do both
        /// lead.
        #[test]
        fn never_do_two_lead(
            turns in vec((any::<bool>(), 0_u64..4000, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut servers = [Server::new("a"), Server::new("b")];
            let mut now = Instant::now();
            let mut lease: Lease = None;
            for (second, pause, looks, hears) in turns {
                now += Duration::from_millis(pause);
                let [a, b] = &mut servers;
                let server = if second { b } else { a };
                if let Some(sent) = server.unheard.take() {
                    server.election.won(sent);
                }
                prop_assert!(!both_lead(&servers, now));
                let [a, b] = &mut servers;
                let server = if second { b } else { a };
                if looks {
                    server.view.clone_from(&lease);
                }
                if server.turn(&mut lease, now) && hears {
                    server.unheard = Some(now);
                }
                prop_assert!(!both_lead(&servers, now));
            }
        }
    }
}
