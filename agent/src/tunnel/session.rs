//! One tunnel's streams: what frames do to them and which frames they cause. Pure: the clock is an argument.
//!
//! Both ends are this one machine ([`Role`] says which). Bytes wait here in both directions, bounded; `stream.rs` lends
//! them to readers and writers, `link.rs` moves frames. Before changing it: the far end may be a K3s of any release, which
//! acknowledges no connect, knows no half-close, and answers every end with another end.
//!
//! Source: remotedialer v0.6, `session.go`, `connection.go`, `backpressure.go`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::inbound::Inbound;
use super::passing::{PASSING_MAX, Passing};
pub use super::role::Role;
use super::websocket::{self, Kind};
use crate::wire::frame::{EOF, Frame, Message};

/// What waits for the reader of one stream ([`Inbound::cost`]) before the peer is told to pause. K3s allows 2 MiB; a box with
/// 256 MB does not.
pub const PAUSE_ABOVE: usize = 256 << 10;
/// It may go on once so few are left.
pub const RESUME_BELOW: usize = 64 << 10;
/// Bytes already under way when the peer learns of the pause are taken, up to here: the socket buffers of both ends.
pub const STREAM_MAX: usize = 16 << 20;
/// All streams of a session together.
pub const SESSION_MAX: usize = 32 << 20;
/// Bytes of one stream that wait to be sent.
pub const OUTBOUND_MAX: usize = 64 << 10;
/// The longest payload sent: what K3s' copy loops make.
pub const DATA_MAX: usize = 32 << 10;
/// Smaller writes wait by stream, where they become one frame.
const PASSING_MIN: usize = 4 << 10;
/// Answers that wait for a peer which sends and does not read.
const CONTROL_MAX: usize = 4096;
/// How long the last bytes of a closed stream may wait for a peer that paused it.
const CLOSE_LIMIT: Duration = Duration::from_secs(60);
/// What the streams of a broken tunnel are told, as K3s says it.
pub const DISCONNECT: &str = "tunnel disconnect";

/// Why a session has to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Nothing came for too long.
    #[error("nothing heard for too long")]
    Silent,
    /// It sends and does not take the answers.
    #[error("the peer does not read what it is sent")]
    Flood,
}

/// No more streams at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many streams in one tunnel")]
pub struct Busy;

/// What a frame did that others wait for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The peer wants this stream to lead there; bytes for it may come at once.
    Open {
        /// The new stream.
        connection: i64,
        /// `tcp`.
        protocol: String,
        /// `host:port`.
        address: String,
    },
    /// Its reader or writer may go on.
    Touched(i64),
}

/// What a reader gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Read {
    /// Bytes, at least one.
    Data(Bytes),
    /// None yet.
    Pending,
    /// It ended well.
    End,
    /// It broke; the text is the peer's.
    Failed(String),
}

/// What a writer gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Write {
    /// So many bytes were taken.
    Taken(usize),
    /// None now.
    Pending,
    /// It has ended.
    Closed,
}

/// What is due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Due {
    /// Send a ping.
    pub ping: bool,
}

/// One end of a tunnel.
#[derive(Debug)]
pub struct Session {
    role: Role,
    streams: BTreeMap<i64, Stream>,
    /// Streams with something to say, each once.
    ready: VecDeque<i64>,
    /// Said about streams that are not there (any more).
    control: VecDeque<(i64, Message)>,
    passing: Passing,
    buffered: usize,
    next_frame: i64,
    next_connection: i64,
    heard: Instant,
    ping_at: Option<Instant>,
    sync_at: Option<Instant>,
    /// No closed stream's time is up before; each frame asks for it, so it is kept.
    late_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Stream {
    /// The last list of the peer's connections lacked it.
    missed: bool,
    /// To be announced.
    connect: Option<(String, String)>,
    inbound: Inbound,
    outbound: BytesMut,
    /// The peer wants nothing now.
    held: bool,
    /// We want nothing now, and whether the peer knows.
    full: bool,
    told_full: bool,
    /// It knows, and is to be told once more while that is so.
    tell_again: bool,
    /// How much waited when the peer was last told.
    told_at: usize,
    /// This side has ended; the peer learns why after the last byte, or when the time is up.
    closing: Option<(String, Instant)>,
    /// Over; the reason is for the reader once it has read all.
    ended: Option<String>,
    /// Nobody here reads or writes any more.
    released: bool,
    queued: bool,
}

impl Session {
    /// A new session; `first_frame` numbers the frames (random, so that logs of both ends can be matched).
    pub fn new(role: Role, first_frame: i64, now: Instant) -> Self {
        Self {
            role,
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            control: VecDeque::new(),
            passing: Passing::default(),
            buffered: 0,
            next_frame: first_frame,
            next_connection: 2,
            heard: now,
            ping_at: role.ping().map(|every| now + every),
            sync_at: role.sync().map(|every| now + every),
            late_at: None,
        }
    }

    /// Opens a stream to `host:port` at the far end. Bytes may be written at once.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn dial(&mut self, address: &str) -> Result<i64, Busy> {
        if self.streams.len() >= self.role.streams() {
            return Err(Busy);
        }
        let connection = self.next_connection;
        self.next_connection += 1;
        let stream = Stream {
            connect: Some(("tcp".into(), address.into())),
            ..Stream::default()
        };
        self.streams.insert(connection, stream);
        self.enqueue(connection);
        Ok(connection)
    }

    /// Takes a frame from the peer.
    ///
    /// # Errors
    /// [`Violation::Flood`].
    pub fn receive(&mut self, frame: Frame, now: Instant) -> Result<Vec<Event>, Violation> {
        self.heard = now;
        let id = frame.connection;
        let mut events = Vec::new();
        match frame.message {
            Message::Data(data) => self.take(id, data, &mut events)?,
            Message::Connect { protocol, address } => self.accept(id, protocol, address, &mut events)?,
            Message::Error(reason) => self.peer_ended(id, reason, &mut events)?,
            Message::Pause => self.hold(id, true, &mut events),
            Message::Resume => self.hold(id, false, &mut events),
            Message::Sync(ids) => self.compare(ids, &mut events),
            Message::Unknown(_) => {}
        }
        Ok(events)
    }

    /// A ping or a pong came.
    pub const fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When anything last came.
    pub const fn last_heard(&self) -> Instant {
        self.heard
    }

    /// Puts what is to be sent now behind what `wire` has, as frames of a websocket; `mask` has a fresh mask for each if this
    /// end is its client. Returns the streams whose writers may go on.
    ///
    /// # Errors
    /// Those of `mask`.
    pub fn output<E>(
        &mut self,
        wire: &mut Vec<u8>,
        mut mask: impl FnMut() -> Result<Option<[u8; 4]>, E>,
    ) -> Result<Vec<i64>, E> {
        self.passing.hand_over(wire);
        let mut touched = Vec::new();
        // A frame at least beside what passes: neither streams with much to say nor those with little wait for the others to be
        // done. Not much more, for a ping waits for what is on its way.
        let most = PASSING_MAX.max(wire.len() + DATA_MAX);
        while wire.len() < most
            && let Some(frame) = self.transmit()
        {
            let (head, data) = frame.parts();
            websocket::put(wire, Kind::Binary, [&head, data], mask()?);
            if matches!(frame.message, Message::Data(_) | Message::Error(_)) {
                touched.push(frame.connection);
            }
        }
        touched.extend(self.passing.admit(wire.len()));
        Ok(touched)
    }

    /// A stream that waits for another to write, which does not.
    pub fn pass_over(&mut self) -> Option<i64> {
        self.passing.pass_over()
    }

    /// The next frame that goes behind what passes.
    fn transmit(&mut self) -> Option<Frame> {
        loop {
            if let Some((connection, message)) = self.control.pop_front() {
                return Some(self.frame(connection, message));
            }
            let connection = self.ready.pop_front()?;
            let Some(stream) = self.streams.get_mut(&connection) else {
                continue;
            };
            stream.queued = false;
            let message = stream.next_message();
            if stream.released && stream.ended.is_some() {
                self.remove(connection);
            } else if message.is_some() {
                self.enqueue(connection);
            }
            if let Some(message) = message {
                return Some(self.frame(connection, message));
            }
        }
    }

    /// Whether [`Session::output`] may have something.
    pub fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.ready.is_empty() || !self.passing.is_empty()
    }

    /// Takes up to `most` received bytes off a stream.
    pub fn read(&mut self, connection: i64, most: usize) -> Read {
        let Some(stream) = self.streams.get_mut(&connection) else {
            return Read::End;
        };
        let before = stream.inbound.cost();
        if let Some(data) = stream.inbound.pop(most) {
            self.buffered -= before - stream.inbound.cost();
            if stream.full && stream.inbound.cost() < RESUME_BELOW {
                stream.full = false;
                self.enqueue(connection);
            }
            return Read::Data(data);
        }
        match &stream.ended {
            Some(reason) if reason == EOF => Read::End,
            Some(reason) => Read::Failed(reason.clone()),
            None if stream.closing.is_some() => Read::End,
            None => Read::Pending,
        }
    }

    /// Gives bytes to be sent. `mask`: a fresh one if this end is the websocket's client.
    pub fn write(&mut self, connection: i64, bytes: &[u8], mask: Option<[u8; 4]>) -> Write {
        let Some(stream) = self.streams.get_mut(&connection) else {
            return Write::Closed;
        };
        if stream.ended.is_some() || stream.closing.is_some() {
            return Write::Closed;
        }
        if bytes.is_empty() {
            return Write::Taken(0);
        }
        // What was written before goes out before: not past what waits in the stream itself.
        if bytes.len() >= PASSING_MIN && !stream.held && stream.outbound.is_empty() && stream.connect.is_none() {
            if !self.passing.may_push(connection) {
                return Write::Pending;
            }
            let taken = bytes.get(..DATA_MAX).unwrap_or(bytes);
            let head = self.frame(connection, Message::Data(Bytes::new()));
            self.passing.push(&head, taken, mask);
            return Write::Taken(taken.len());
        }
        let room = OUTBOUND_MAX.saturating_sub(stream.outbound.len()).min(bytes.len());
        let Some(taken) = bytes.get(..room).filter(|taken| !taken.is_empty()) else {
            return Write::Pending;
        };
        stream.outbound.extend_from_slice(taken);
        if !stream.held {
            self.enqueue(connection);
        }
        Write::Taken(room)
    }

    /// Ends a stream in both directions; what was written before still goes out. `reason` is [`EOF`] for a good end.
    pub fn close(&mut self, connection: i64, reason: &str, now: Instant) {
        let Some(stream) = self.streams.get_mut(&connection) else {
            return;
        };
        self.buffered -= std::mem::take(&mut stream.inbound).cost();
        if stream.ended.is_none() && stream.closing.is_none() {
            let until = now + CLOSE_LIMIT;
            stream.closing = Some((reason.to_owned(), until));
            self.late_at.get_or_insert(until);
            self.enqueue(connection);
        }
    }

    /// Nobody uses the stream any more: ends it if it has not ended, and forgets it in time.
    pub fn release(&mut self, connection: i64, now: Instant) {
        self.close(connection, EOF, now);
        let Some(stream) = self.streams.get_mut(&connection) else {
            return;
        };
        stream.released = true;
        if stream.ended.is_some() {
            self.remove(connection);
        }
    }

    /// Ends all streams: the tunnel is broken. Their readers still get what has come.
    pub fn break_off(&mut self) -> Vec<i64> {
        self.ready.clear();
        self.control.clear();
        self.passing = Passing::default();
        self.streams.retain(|_, stream| !stream.released);
        for stream in self.streams.values_mut() {
            stream.ended.get_or_insert_with(|| DISCONNECT.into());
        }
        self.streams.keys().copied().collect()
    }

    /// Does what time brings.
    ///
    /// # Errors
    /// [`Violation::Silent`].
    pub fn tick(&mut self, now: Instant) -> Result<Due, Violation> {
        if now >= self.heard + self.role.silence() {
            return Err(Violation::Silent);
        }
        if self.late_at.is_some_and(|at| at <= now) {
            self.give_up_on_the_late(now);
        }
        if let (Some(at), Some(every)) = (self.sync_at, self.role.sync())
            && at <= now
        {
            self.sync_at = Some(now + every);
            let known = self.streams.iter().filter(|(_, stream)| stream.ended.is_none());
            let known = known.map(|(id, _)| *id).collect();
            self.control.push_back((0, Message::Sync(known)));
        }
        let ping = self.ping_at.is_some_and(|at| at <= now);
        if ping {
            self.ping_at = self.role.ping().map(|every| now + every);
        }
        Ok(Due { ping })
    }

    /// When [`Session::tick`] has something to do at the latest.
    pub fn next_tick(&self) -> Instant {
        let due = [self.ping_at, self.sync_at, self.late_at].into_iter().flatten().min();
        let silent = self.heard + self.role.silence();
        due.map_or(silent, |due| due.min(silent))
    }

    /// What waits in closed streams for a peer that paused them is dropped when their time is up.
    fn give_up_on_the_late(&mut self, now: Instant) {
        let (mut late, mut next) = (Vec::new(), None::<Instant>);
        for (id, stream) in &mut self.streams {
            match stream.closing {
                Some((_, until)) if until <= now => {
                    stream.outbound.clear();
                    late.push(*id);
                }
                Some((_, until)) => next = Some(next.map_or(until, |next| next.min(until))),
                None => {}
            }
        }
        self.late_at = next;
        for id in late {
            self.enqueue(id);
        }
    }

    /// Streams that are not over.
    pub fn open_streams(&self) -> usize {
        self.streams.values().filter(|stream| stream.ended.is_none()).count()
    }

    fn take(&mut self, id: i64, data: Bytes, events: &mut Vec<Event>) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else {
            return self.say(id, Message::Error(format!("connection not found {id}")));
        };
        if data.is_empty() || stream.closing.is_some() {
            return Ok(());
        }
        let cost = Inbound::cost_of(&data);
        if stream.inbound.cost() + cost > STREAM_MAX || self.buffered + cost > SESSION_MAX {
            let reason = "the receiver is too slow";
            stream.ended = Some(reason.into());
            events.push(Event::Touched(id));
            return self.say(id, Message::Error(reason.into()));
        }
        stream.inbound.push(data);
        self.buffered += cost;
        if stream.inbound.cost() > PAUSE_ABOVE && !stream.full {
            stream.full = true;
            self.enqueue(id);
        } else if stream.told_full && stream.inbound.cost() > stream.told_at + PAUSE_ABOVE {
            // Goes on all the same: K3s forgets a pause when it is itself told to resume.
            stream.tell_again = true;
            self.enqueue(id);
        }
        events.push(Event::Touched(id));
        Ok(())
    }

    fn accept(&mut self, id: i64, protocol: String, address: String, events: &mut Vec<Event>) -> Result<(), Violation> {
        if self.role == Role::Dialer {
            return self.say(id, Message::Error("connect not allowed".into()));
        }
        if self.streams.len() >= self.role.streams() || self.streams.contains_key(&id) {
            return self.say(id, Message::Error(Busy.to_string()));
        }
        self.streams.insert(id, Stream::default());
        events.push(Event::Open {
            connection: id,
            protocol,
            address,
        });
        Ok(())
    }

    fn peer_ended(&mut self, id: i64, reason: String, events: &mut Vec<Event>) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.ended.is_none()) else {
            return Ok(());
        };
        stream.outbound.clear();
        stream.closing = None;
        stream.ended = Some(reason.clone());
        let released = stream.released;
        events.push(Event::Touched(id));
        if released {
            self.remove(id);
        }
        self.say(id, Message::Error(reason))
    }

    fn hold(&mut self, id: i64, held: bool, events: &mut Vec<Event>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.held = held;
        if !held {
            self.enqueue(id);
            events.push(Event::Touched(id));
        }
    }

    /// Ends, without a word, streams that two lists of the peer in a row do not name. One list may be older than the stream:
    /// it waits for its turn as every frame does, but for less time ([`Role::sync`]) than lies between two.
    fn compare(&mut self, mut known: Vec<i64>, events: &mut Vec<Event>) {
        known.sort_unstable();
        let mut lost = Vec::new();
        for (id, stream) in &mut self.streams {
            let unknown = stream.ended.is_none() && stream.connect.is_none() && known.binary_search(id).is_err();
            if std::mem::replace(&mut stream.missed, unknown) && unknown {
                lost.push(*id);
            }
        }
        for id in lost {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.outbound.clear();
            stream.closing = None;
            stream.ended = Some("the far end does not know this connection".into());
            if stream.released {
                self.remove(id);
            } else {
                events.push(Event::Touched(id));
            }
        }
    }

    fn say(&mut self, id: i64, message: Message) -> Result<(), Violation> {
        if self.control.len() >= CONTROL_MAX {
            return Err(Violation::Flood);
        }
        self.control.push_back((id, message));
        Ok(())
    }

    fn remove(&mut self, id: i64) {
        self.passing.forget(id);
        if let Some(stream) = self.streams.remove(&id) {
            self.buffered -= stream.inbound.cost();
        }
    }

    fn enqueue(&mut self, connection: i64) {
        if let Some(stream) = self.streams.get_mut(&connection)
            && !stream.queued
        {
            stream.queued = true;
            self.ready.push_back(connection);
        }
    }

    const fn frame(&mut self, connection: i64, message: Message) -> Frame {
        let id = self.next_frame;
        self.next_frame = id.wrapping_add(1);
        Frame {
            id,
            connection,
            message,
        }
    }
}

impl Stream {
    fn next_message(&mut self) -> Option<Message> {
        if self.ended.is_some() {
            return None;
        }
        if let Some((protocol, address)) = self.connect.take() {
            return Some(Message::Connect { protocol, address });
        }
        let again = std::mem::take(&mut self.tell_again) && self.full;
        if self.full != self.told_full || again {
            self.told_full = self.full;
            self.told_at = self.inbound.cost();
            // K3s has one flag for both directions: our Resume clears the pause that it asked us for, and it will not
            // ask us to resume. It pauses us again if it must.
            self.held &= self.full;
            return Some(if self.full { Message::Pause } else { Message::Resume });
        }
        if !self.outbound.is_empty() {
            if self.held {
                return None;
            }
            let length = self.outbound.len().min(DATA_MAX);
            let data = self.outbound.split_to(length).freeze();
            if self.outbound.is_empty() {
                self.outbound = BytesMut::new();
            }
            return Some(Message::Data(data));
        }
        let (reason, _) = self.closing.take()?;
        self.ended = Some(EOF.into());
        Some(Message::Error(reason))
    }
}
