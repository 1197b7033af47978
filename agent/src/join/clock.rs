//! What time it is at least, for boards that boot in 1970: by it servers' certificates are judged while the clock is behind.
//!
//! The floor is what the cluster has shown: the beginning of this node's own certificates, and the `Date` of answers over
//! verified TLS. It is never above the end of the certificate that vouched for it, so a server whose clock ran ahead
//! cannot poison it for long. The system clock alone never raises it and is never set. Nothing is refused that the system
//! clock would let pass: the floor counts only where that is before a certificate's beginning. What an operator sees is in
//! docs/clocks.md.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::durable::{Disk, SystemDisk};
use super::files::Files;
use super::renewal;

/// How far the floor has to rise before it is written again: one small write a day is what the flash is worth.
const WRITE_SECONDS: u64 = 86_400;
/// A floor that has kept this node off its cluster for so long is taken for false.
const PATIENCE: Duration = Duration::from_secs(86_400);
/// The year 10000: what is above was not written by us.
const MAX_SECONDS: u64 = 253_402_300_800;

/// From when to when a certificate is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    /// `NotBefore`.
    pub from: u64,
    /// `NotAfter`.
    pub until: u64,
}

impl Window {
    /// Whether it ends before it has begun, as what a clock far behind signs.
    pub const fn is_empty(&self) -> bool {
        self.from >= self.until
    }

    /// Of a certificate (DER).
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        // What began before 1970 began at zero.
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Some(Self {
            from: seconds(validity.not_before.timestamp()),
            until: seconds(validity.not_after.timestamp()),
        })
    }
}

/// When a certificate is to be judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moment {
    /// By the system clock.
    System,
    /// At this time: the system clock is behind.
    Floor(u64),
    /// The certificate ended before the floor: it is an old one, or the floor is false.
    Ended,
}

/// The floor itself. Pure: times are arguments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    /// Seconds since 1970.
    at: u64,
    /// End of the last server certificate that was accepted: no statement of a server counts beyond it. 0: none yet.
    vouched: u64,
    /// Since when it contradicts what the servers show.
    doubted: Option<Instant>,
}

impl Floor {
    /// Of an earlier run.
    pub fn new(at: u64) -> Self {
        Self {
            at: if at < MAX_SECONDS { at } else { 0 },
            ..Self::default()
        }
    }

    /// Seconds since 1970.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// When to judge a certificate, by what the system clock shows. That a certificate of the cluster exists proves that
    /// its beginning is past.
    pub fn moment(&self, system: u64, window: Window) -> Moment {
        let at = self.at.max(window.from);
        match (system >= window.from, at <= window.until) {
            (true, _) => Moment::System,
            (false, true) => Moment::Floor(at),
            (false, false) => Moment::Ended,
        }
    }

    /// Judges a server's certificate by `verify`, which takes the time (seconds since 1970) at which it is to be good, and
    /// learns from one that is accepted.
    ///
    /// `system`: what the system clock shows. `now`: on the monotonic clock. Without a `window` (no certificate of ours can be
    /// without) nothing is learned.
    ///
    /// # Errors
    /// Those of `verify`.
    pub fn judge<T, E>(
        &mut self,
        system: u64,
        window: Option<Window>,
        now: Instant,
        verify: impl Fn(u64) -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(window) = window else { return verify(system) };
        let verified = match self.moment(system, window) {
            Moment::System => verify(system)?,
            Moment::Floor(floor) => verify(floor)?,
            Moment::Ended => {
                let genuine = verify(window.from)?;
                if !self.gives_up(now) {
                    verify(self.at)?;
                }
                genuine
            }
        };
        self.accept(window);
        Ok(verified)
    }

    /// A certificate is genuine and ended before the floor. Whether to take it after all: after [`PATIENCE`].
    pub fn gives_up(&mut self, now: Instant) -> bool {
        now.duration_since(*self.doubted.get_or_insert(now)) >= PATIENCE
    }

    /// A server's certificate was accepted. A floor beyond its end was false.
    pub fn accept(&mut self, window: Window) {
        self.vouched = window.until;
        self.doubted = None;
        if self.at > window.until {
            self.at = window.from;
        }
    }

    /// What time it is by a server with that certificate.
    pub fn told(&mut self, date: u64) {
        self.at = self.at.max(date.min(self.vouched));
    }

    /// Whether the disk, which has this, should have the floor.
    pub fn is_due(&self, written: u64) -> bool {
        self.at < written || self.at - written >= WRITE_SECONDS
    }
}

/// The clock and the floor of this machine, shared by all connections to servers.
#[derive(Debug)]
pub struct Clock {
    system: Arc<dyn TimeProvider>,
    floor: Mutex<Floor>,
    /// The operator was told that the clock is behind.
    told: Mutex<bool>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Arc::new(DefaultTimeProvider), 0)
    }
}

impl Clock {
    /// A system clock, and what it is at least.
    pub fn new(system: Arc<dyn TimeProvider>, floor: u64) -> Self {
        Self {
            system,
            floor: Mutex::new(Floor::new(floor)),
            told: Mutex::default(),
        }
    }

    /// The machine's clock, with the floor of an earlier run and of the certificates that it left.
    pub fn open(files: &Files) -> Arc<Self> {
        Arc::new(Self {
            floor: Mutex::new(left(&SystemDisk, files, &renewal::windows(files))),
            ..Self::default()
        })
    }

    /// The system clock.
    pub fn system(&self) -> Arc<dyn TimeProvider> {
        Arc::clone(&self.system)
    }

    /// What the system clock shows, in seconds since 1970; 0 if that is earlier.
    pub fn now(&self) -> u64 {
        self.system.current_time().map_or(0, |now| now.as_secs())
    }

    /// What time it is at least, in seconds since 1970.
    pub fn floor(&self) -> u64 {
        self.lock().at()
    }

    /// When to judge the certificate (DER) of somebody who is no server, while the system clock shows that. Nothing is learned
    /// from it: what a node shows is no word of the cluster's.
    pub fn moment(&self, certificate: &[u8], system: u64) -> u64 {
        let floor = *self.lock();
        match Window::of(certificate).map(|window| floor.moment(system, window)) {
            None | Some(Moment::System) => system,
            Some(Moment::Floor(at)) => at,
            Some(Moment::Ended) => floor.at,
        }
    }

    /// What a server says (the `Date` of its answer) over verified TLS.
    pub fn told(&self, date: u64) {
        self.lock().told(date);
    }

    /// Writes the floor down if it has moved by a day since it was.
    pub fn keep(&self, files: &Files) {
        let floor = *self.lock();
        if let Err(error) = keep(&SystemDisk, files, &floor) {
            warn!(error = %error, "cannot keep the time floor");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Floor> {
        self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once that the clock is behind, and once that it no longer is.
    fn tell(&self, behind: bool, system: u64, judged: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match (std::mem::replace(&mut *told, behind), behind) {
            (false, true) => warn!(
                clock = system,
                at_least = judged,
                "this machine's clock is behind the cluster's certificates; they are judged by the time floor until it is set"
            ),
            (true, false) => info!(clock = system, "this machine's clock is right again"),
            (true, true) | (false, false) => {}
        }
    }
}

/// The floor that an earlier run left, and the node's own certificates (`own`).
pub(super) fn left(disk: &dyn Disk, files: &Files, own: &[Option<Window>]) -> Floor {
    let begins = own.iter().flatten().map(|window| window.from);
    Floor::new(begins.fold(written(disk, files), u64::max))
}

/// Writes the floor down if it has moved by a day since it was.
pub(super) fn keep(disk: &dyn Disk, files: &Files, floor: &Floor) -> io::Result<()> {
    match floor.is_due(written(disk, files)) {
        true => files.write_on(disk, &files.time_floor(), format!("{}\n", floor.at).as_bytes()),
        false => Ok(()),
    }
}

fn written(disk: &dyn Disk, files: &Files) -> u64 {
    let text = disk.read(&files.time_floor()).unwrap_or_default();
    let text = std::str::from_utf8(&text).unwrap_or_default();
    text.trim().parse().ok().filter(|at| *at < MAX_SECONDS).unwrap_or(0)
}

/// Verifies servers as rustls does, at the moment that the floor says.
pub struct Judge {
    inner: Arc<WebPkiServerVerifier>,
    clock: Arc<Clock>,
}

impl Judge {
    /// Trusts what `inner` trusts.
    pub fn new(inner: Arc<WebPkiServerVerifier>, clock: Arc<Clock>) -> Self {
        Self { inner, clock }
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let window = Window::of(end_entity);
        let system = now.as_secs();
        let verified = self.clock.lock().judge(system, window, Instant::now(), |at| {
            let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
            self.inner
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
        })?;
        if let Some(window) = window {
            let judged = self.clock.floor().max(window.from);
            self.clock.tell(system < window.from, system, judged);
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::RootCertStore;
    use rustls::crypto::ring;

    use super::*;
    use crate::join::Certificate;
    use crate::scratch::TempDir;

    /// The first of January of a year.
    fn year(year: i32) -> u64 {
        u64::try_from(date_time_ymd(year, 1, 1).unix_timestamp()).unwrap()
    }

    fn window(from: i32, until: i32) -> Window {
        Window {
            from: year(from),
            until: year(until),
        }
    }

    /// A server's certificate from one year to another, and what verifies it.
    struct Server {
        certificate: CertificateDer<'static>,
        judge: Judge,
    }

    impl Server {
        fn new(from: i32, until: i32, clock: &Arc<Clock>) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut authority = CertificateParams::default();
            authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = authority.self_signed(&key).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let issuer = Issuer::new(authority, key);
            let mut params = CertificateParams::new(["server".to_owned()]).unwrap();
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
            let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
            let provider = Arc::new(ring::default_provider());
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
            Self {
                certificate: leaf.der().clone(),
                judge: Judge::new(inner.unwrap(), Arc::clone(clock)),
            }
        }

        fn is_trusted(&self, system: u64) -> bool {
            self.is_trusted_as("server", system)
        }

        fn is_trusted_as(&self, name: &'static str, system: u64) -> bool {
            let name = ServerName::try_from(name).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(system));
            self.judge
                .verify_server_cert(&self.certificate, &[], &name, &[], now)
                .is_ok()
        }
    }

    fn clock(at: u64) -> Arc<Clock> {
        Arc::new(Clock::new(Arc::new(DefaultTimeProvider), at))
    }

    #[test]
    fn a_board_that_boots_in_1970_trusts_its_servers_and_no_others() {
        for floor in [0, year(2026)] {
            let server = Server::new(2026, 2027, &clock(floor));
            assert!(server.is_trusted(0), "floor {floor}");
            assert!(!server.is_trusted_as("another", 0), "floor {floor}");
            let stranger = Server::new(2026, 2027, &clock(floor));
            let mixed = Server {
                certificate: stranger.certificate,
                judge: server.judge,
            };
            assert!(!mixed.is_trusted(0), "a certificate of another authority");
        }
    }

    #[test]
    fn a_certificate_that_ended_before_the_floor_is_refused_while_the_clock_is_behind() {
        let server = Server::new(2024, 2025, &clock(year(2026)));
        assert!(!server.is_trusted(0));
        assert_eq!(server.judge.clock.floor(), year(2026), "and does not move the floor");
        assert!(
            !Server::new(2024, 2025, &clock(0)).is_trusted(year(2026)),
            "nor is it taken by a right clock"
        );
    }

    #[test]
    fn a_caller_is_judged_by_the_floor_while_the_clock_is_behind_and_teaches_nothing() {
        for (floor, system, judged) in [
            (2020, 1970, 2026),
            (2026, 1970, 2026),
            (2028, 1970, 2028),
            (2028, 2026, 2026),
            (2020, 2028, 2028),
        ] {
            let clock = clock(year(floor));
            let caller = Server::new(2026, 2027, &clock).certificate;
            assert_eq!(
                clock.moment(&caller, year(system)),
                year(judged),
                "floor {floor}, system {system}"
            );
            assert_eq!(clock.floor(), year(floor));
        }
        assert_eq!(clock(7).moment(b"nonsense", 5), 5);
    }

    #[test]
    fn a_right_clock_decides_alone_and_corrects_a_false_floor() {
        let server = Server::new(2026, 2027, &clock(year(2080)));
        assert!(!server.is_trusted(0));
        assert!(server.is_trusted(year(2026) + 5));
        assert_eq!(server.judge.clock.floor(), year(2026));
        assert!(server.is_trusted(0), "from then on also without a right clock");
    }

    #[test]
    fn a_false_floor_is_given_up_after_a_day_without_a_right_clock() {
        let mut floor = Floor::new(year(2080));
        let start = Instant::now();
        let at = |hours: u64| start + Duration::from_secs(hours * 3600);
        assert_eq!(floor.moment(0, window(2026, 2027)), Moment::Ended);
        for (hours, expected) in [(0, false), (23, false), (24, true), (30, true)] {
            assert_eq!(floor.gives_up(at(hours)), expected, "after {hours} h");
        }
        floor.accept(window(2026, 2027));
        assert_eq!(floor.at, year(2026));
        assert!(!floor.gives_up(at(100)), "the next doubt begins anew");
    }

    #[test]
    fn only_a_server_that_is_trusted_raises_the_floor_and_not_beyond_its_certificate() {
        let mut floor = Floor::default();
        floor.told(year(2026));
        assert_eq!(floor.at, 0, "nobody vouches yet");
        floor.accept(window(2026, 2027));
        floor.told(year(2026) + 7);
        assert_eq!(floor.at, year(2026) + 7);
        floor.told(year(2080));
        assert_eq!(floor.at, year(2027), "a false future is bounded");
        floor.told(year(2026));
        assert_eq!(floor.at, year(2027), "a step back does not lower it");
        assert_eq!(floor.moment(0, window(2026, 2028)), Moment::Floor(year(2027)));
        // A clock that jumps ahead by years is not the floor's business: it goes with the jump.
        assert_eq!(floor.moment(year(2080), window(2026, 2028)), Moment::System);
    }

    #[test]
    fn the_floor_is_written_once_a_day_and_when_it_was_false() {
        let scratch = TempDir::new("clock");
        let files = Files::create(scratch.path().to_owned()).unwrap();
        fs::write(files.cert(Certificate::ClientKubelet), "nonsense").unwrap();
        let clock = Clock::open(&files);
        assert_eq!(clock.floor(), 0);
        clock.lock().accept(window(2026, 2027));
        for (told, expected) in [
            (year(2026), year(2026)),
            (year(2026) + 86_399, year(2026)),
            (year(2026) + 86_400, year(2026) + 86_400),
        ] {
            clock.told(told);
            clock.keep(&files);
            assert_eq!(written(&SystemDisk, &files), expected);
        }
        assert_eq!(Clock::open(&files).floor(), year(2026) + 86_400);
        clock.lock().accept(window(2020, 2021));
        clock.keep(&files);
        assert_eq!(written(&SystemDisk, &files), year(2020));
        for damaged in ["", "18446744073709551615", "-1", "12x"] {
            fs::write(files.time_floor(), damaged).unwrap();
            assert_eq!(Clock::open(&files).floor(), 0, "{damaged:?}");
        }
    }

    #[test]
    fn the_nodes_own_certificate_is_a_floor_without_a_file() {
        let scratch = TempDir::new("clock");
        let files = Files::create(scratch.path().to_owned()).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2026, 1, 1);
        let own = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        fs::write(files.cert(Certificate::ServingKubelet), own.pem()).unwrap();
        assert_eq!(Clock::open(&files).floor(), year(2026));
    }

    proptest! {
        /// Whatever the floor: what the system clock finds good is judged by the system clock.
        #[test]
        fn the_floor_never_makes_a_right_clock_stricter(floor: u64, from in 0..MAX_SECONDS, long in 0..MAX_SECONDS, into in 0..MAX_SECONDS) {
            let window = Window { from, until: from + long };
            prop_assert_eq!(Floor::new(floor).moment(from + into, window), Moment::System);
        }

        /// After any statements of a server, its own certificate can still be accepted.
        #[test]
        fn no_statement_of_a_server_makes_its_own_certificate_bad(dates: Vec<u64>, from in 0..MAX_SECONDS, long in 0..MAX_SECONDS, system: u64) {
            let window = Window { from, until: from + long };
            let mut floor = Floor::default();
            floor.accept(window);
            dates.into_iter().for_each(|date| floor.told(date));
            prop_assert_ne!(floor.moment(system, window), Moment::Ended);
        }
    }
}
