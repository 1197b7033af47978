//! Which server runs controllers and scheduler: the holder of the Lease `kube-system/k3s`.
//!
//! Before it acts it writes [`TERM`], on the condition that the Lease is as it left it. All that it does then is written on the
//! condition that nobody has written there since (`fence.rs`): what a holder of before still has on its way, by whatever
//! delay, comes before that and is seen by the next one before it acts, or does not happen.
//!
//! [`Election`] decides (pure): what the Lease shows and the monotonic time in, what to do next out. A holder is taken to
//! be gone when his Lease was not seen to change for [`EXPIRY`]; he himself has stopped acting after [`LEAD`], which is
//! shorter. One Lease for controllers and scheduler together, under the name of K3s' own lock: they live in one process
//! and move together. Rules as in client-go v1.36 `tools/leaderelection/leaderelection.go`; its times are 15, 10 and 2 s.

use std::error::Error;

use agent::units::Revision;
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
use crate::request::Pipeline as _;
use crate::store::{Change, Expect, Guard, StoreError, Write};

/// Name of the Lease.
const NAME: &str = "k3s";
/// The record of the last term in the datastore; no object, so nothing shows it to clients.
const TERM: &str = "/amphipod/lead";

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
    /// The Lease as that left it.
    lease: Revision,
    /// Counts how often the Lease became ours after it was not, or not for sure.
    terms: u64,
}

impl Election {
    fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            seen: None,
            led_since: None,
            lease: Revision::ZERO,
            terms: 0,
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

    /// The Lease was written as ours, and is at this revision; `sent`: the moment before.
    fn won(&mut self, sent: Instant, lease: Revision) {
        if self.led_since.replace(sent).is_none() {
            self.terms += 1;
        }
        self.lease = lease;
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
    /// is certain [`Peers::leaders`] writes.
    pub async fn stand(self, start: impl Fn(&mut JoinSet<()>)) {
        let mut election = Election::new(&self.holder);
        let mut acting = JoinSet::new();
        let mut term = 0;
        let mut held_up = false;
        let mut watch = None;
        loop {
            let mut wake = self.turn(&mut election).await;
            self.fence.set(election.leads_until());
            let leads = election.leads(Instant::now());
            // Another one may have led since the last look, and be gone already; or the datastore lost what it had of the term.
            let goes_on = leads && term == election.terms && self.fence.is_begun();
            if !acting.is_empty() && !goes_on {
                warn!("this server leads no longer, controllers and scheduler stop here");
                acting.shutdown().await;
                self.fence.end();
            }
            if leads
                && acting.is_empty()
                && let Some(end) = election.leads_until()
            {
                match self.begin(election.lease, end).await {
                    Ok(()) => {
                        info!("this server leads: controllers and scheduler run here");
                        term = election.terms;
                        held_up = false;
                        start(&mut acting);
                    }
                    Err(error) => {
                        // Nobody else leads meanwhile.
                        match std::mem::replace(&mut held_up, true) {
                            false => warn!(error = &error as &dyn Error, "cannot begin to lead, tries again"),
                            true => debug!(error = &error as &dyn Error, "cannot begin to lead"),
                        }
                        wake = wake.min(Instant::now() + RETRY);
                    }
                }
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
            Ok(Ok(lease)) => {
                let revision = stamp(&lease).parse();
                election.won(sent, revision.map_or(Revision::ZERO, Revision::new));
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

    /// Writes that a new term begins, if the Lease is still as at `lease`, and waits until this server shows all that was done
    /// in those before; not beyond `end`.
    pub(super) async fn begin(&self, lease: Revision, end: Instant) -> Result<(), StoreError> {
        let late = || StoreError::Unavailable("the lead was over before it could begin".to_owned());
        let row = self
            .registry
            .find("coordination.k8s.io", "v1", "leases")
            .ok_or_else(late)?;
        let write = Write {
            guard: Some(Guard {
                key: row.key(Some(NAMESPACE), NAME).into(),
                at: lease,
            }),
            ..Write::new(
                TERM,
                Expect::Any,
                Change::Put(json!({ "holder": self.holder }).to_string().into()),
            )
        };
        let begin = async {
            let at = self.registry.store().write(write).await?;
            self.registry.cache().reached(at).await;
            self.fence.begin(Guard { key: TERM.into(), at });
            Ok(())
        };
        timeout_at(end, begin).await.map_err(|_| late())?
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
            outcome => outcome.map(drop),
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

    const LEASE: Revision = Revision::new(5);

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
        election.won(at(0), LEASE);
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
        election.won(now, LEASE);
        assert!(election.leads(now));
        election.observe(by("b", "2"), now);
        assert!(!election.leads(now));
    }

    #[test]
    fn a_lease_that_was_another_ones_meanwhile_is_a_new_term() {
        let (mut election, start) = (Election::new("a"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        election.observe(None, at(0));
        election.won(at(0), LEASE);
        assert_eq!(election.observe(by("a", "1"), at(3)), Step::Write);
        election.won(at(3), LEASE.next());
        assert_eq!((election.terms, election.lease), (1, LEASE.next()), "renewed");
        // Stood still, while somebody led and gave it up.
        assert_eq!(election.observe(by("", "9"), at(60)), Step::Write);
        election.won(at(60), LEASE);
        assert!(election.leads(at(60)));
        assert_eq!(election.terms, 2);
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
                    server.election.won(sent, LEASE);
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
