//! Two sessions against each other over a simulated link, ten thousand times: every order of frames, reads, writes,
//! closes and pauses, by a seed. What fails prints its seed; nothing here sleeps or reads a clock.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::inbound::PIECE;
use super::passing::{PASSING_MAX, TURN};
use super::session::{DATA_MAX, Event, OUTBOUND_MAX, PAUSE_ABOVE, Read, Role, STREAM_MAX, Session, Write};
use super::websocket::{Incoming, Reader, Side};
use crate::chance::{Random, simulate};
use crate::wire::frame::{Frame, Message};

/// What one end has done with one stream.
#[derive(Default)]
struct Seen {
    written: Vec<u8>,
    read: Vec<u8>,
    closed: bool,
    ended: bool,
}

struct End {
    session: Session,
    wire: VecDeque<Frame>,
    streams: BTreeMap<i64, Seen>,
}

struct World {
    ends: [End; 2],
    now: Instant,
    random: Random,
    pattern: Vec<u8>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let end = |role| End {
            session: Session::new(role, 1, now),
            wire: VecDeque::new(),
            streams: BTreeMap::new(),
        };
        Self {
            ends: [end(Role::Dialer), end(Role::Listener)],
            now,
            random: Random::new(seed),
            pattern: (0..=250).cycle().take(41_000).collect(),
        }
    }

    fn step(&mut self) {
        let side = self.random.next(2);
        match self.random.next(12) {
            0 => self.dial(),
            1..=3 => self.write(side),
            4..=6 => self.read(side),
            7 => self.send(side),
            8 | 9 => self.deliver(side),
            10 => self.close(side),
            _ => self.pass_time(),
        }
    }

    fn dial(&mut self) {
        if self.ends[0].session.open_streams() < 4 {
            let id = self.ends[0].session.dial("127.0.0.1:10250").unwrap();
            self.ends[0].streams.insert(id, Seen::default());
        }
    }

    fn pick(&mut self, side: usize) -> Option<i64> {
        let ids: Vec<i64> = self.ends[side].streams.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.random.next(ids.len())])
    }

    fn write(&mut self, side: usize) {
        let Some(id) = self.pick(side) else { return };
        let most = [10, 1000, 40_000][self.random.next(3)];
        let size = self.random.next(most);
        let end = &mut self.ends[side];
        // Nearly every place in every stream has its own byte: 251 is prime to the sizes of buffers.
        let from = (end.streams[&id].written.len() + usize::try_from(id).unwrap() * 17) % 251;
        let bytes = &self.pattern[from..from + size];
        if let Write::Taken(count) = end.session.write(id, bytes, None) {
            assert!(count <= OUTBOUND_MAX);
            end.streams
                .get_mut(&id)
                .unwrap()
                .written
                .extend_from_slice(&bytes[..count]);
        }
    }

    fn read(&mut self, side: usize) {
        let Some(id) = self.pick(side) else { return };
        let most = 1 + self.random.next(100_000);
        let end = &mut self.ends[side];
        let seen = end.streams.get_mut(&id).unwrap();
        match end.session.read(id, most) {
            Read::Data(bytes) => {
                assert!(!bytes.is_empty() && bytes.len() <= most);
                seen.read.extend_from_slice(&bytes);
            }
            Read::Pending => {}
            Read::End | Read::Failed(_) => seen.ended = true,
        }
    }

    fn send(&mut self, side: usize) {
        if self.random.next(4) > 0 {
            let (frames, _) = sent(&mut self.ends[side].session);
            self.ends[side].wire.extend(frames);
        }
    }

    fn deliver(&mut self, side: usize) {
        for _ in 0..self.random.next(8) {
            let Some(frame) = self.ends[side].wire.pop_front() else {
                return;
            };
            let other = &mut self.ends[1 - side];
            for event in other.session.receive(frame, self.now).unwrap() {
                if let Event::Open { connection, .. } = event {
                    other.streams.insert(connection, Seen::default());
                }
            }
        }
    }

    fn close(&mut self, side: usize) {
        if self.random.next(4) > 0 {
            return;
        }
        let Some(id) = self.pick(side) else { return };
        let end = &mut self.ends[side];
        end.session.close(id, "EOF", self.now);
        end.streams.get_mut(&id).unwrap().closed = true;
    }

    /// A frame is under way for seconds at most: long pauses only while none is.
    fn pass_time(&mut self) {
        let idle = self
            .ends
            .iter()
            .all(|end| end.wire.is_empty() && !end.session.has_output());
        let most = if idle { 19_000 } else { 100 };
        self.now += Duration::from_millis(self.random.next(most) as u64);
        for end in &mut self.ends {
            end.session.heard(self.now);
            end.session.tick(self.now).unwrap();
            assert!(
                end.session.next_tick() > self.now,
                "a tick that is due again at once spins"
            );
        }
    }

    fn send_all(&mut self, side: usize) {
        while self.ends[side].session.has_output() {
            let (frames, _) = sent(&mut self.ends[side].session);
            self.ends[side].wire.extend(frames);
        }
    }

    /// Lets everything arrive and be read.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut moved = false;
            for side in 0..2 {
                self.send_all(side);
                while !self.ends[side].wire.is_empty() {
                    moved = true;
                    self.deliver(side);
                }
            }
            for side in 0..2 {
                let ids: Vec<i64> = self.ends[side].streams.keys().copied().collect();
                for id in ids {
                    let end = &mut self.ends[side];
                    while let Read::Data(bytes) = end.session.read(id, usize::MAX) {
                        moved = true;
                        end.streams.get_mut(&id).unwrap().read.extend_from_slice(&bytes);
                    }
                }
            }
            if !moved && self.ends.iter().all(|end| !end.session.has_output()) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check(&mut self) {
        let ids: Vec<i64> = self.ends[0].streams.keys().copied().collect();
        for id in ids {
            for side in 0..2 {
                let (from, to) = (&self.ends[side].streams[&id], self.ends[1 - side].streams.get(&id));
                let Some(to) = to else {
                    panic!("stream {id} never arrived")
                };
                assert!(
                    from.written.starts_with(&to.read),
                    "stream {id}: bytes changed on their way"
                );
                if !from.closed && !to.closed {
                    assert_eq!(from.written.len(), to.read.len(), "stream {id}: bytes were lost");
                } else if !to.closed {
                    // The closing side's own bytes all arrive; the other's may have been under way.
                    assert_eq!(
                        from.written.len(),
                        to.read.len(),
                        "stream {id}: bytes before the end were lost"
                    );
                    let end = self.ends[1 - side].session.read(id, 1);
                    assert_eq!(end, Read::End, "stream {id} does not end at the other side");
                }
            }
        }
    }
}

#[test]
fn no_byte_is_lost_doubled_or_changed_in_any_order_of_things() {
    simulate(10_000, |seed| {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
        }
        world.settle();
        world.check();
    });
}

fn data(connection: i64, size: usize) -> Frame {
    Frame {
        id: 0,
        connection,
        message: Message::Data(vec![7; size].into()),
    }
}

/// What a session sends in one go, and whose writers may go on. No session of a simulation masks.
fn sent(session: &mut Session) -> (Vec<Frame>, Vec<i64>) {
    let mut bytes = Vec::new();
    let touched = session.output(&mut bytes, || Ok::<_, Infallible>(None)).unwrap();
    assert!(
        bytes.len() < 2 * (PASSING_MAX + DATA_MAX + 64),
        "{} bytes at once",
        bytes.len()
    );
    let (mut reader, mut wire, mut frames) = (Reader::new(Side::Client), BytesMut::from(&*bytes), Vec::new());
    while let Some(incoming) = reader.next(&mut wire).unwrap() {
        let Incoming::Binary(message) = incoming else {
            panic!("{incoming:?}");
        };
        frames.push(Frame::decode(&message).unwrap());
    }
    (frames, touched)
}

fn said(session: &mut Session) -> Vec<Message> {
    let mut said = Vec::new();
    while session.has_output() {
        said.extend(sent(session).0.into_iter().map(|frame| frame.message));
    }
    said
}

fn open(session: &mut Session) -> i64 {
    let id = session.dial("127.0.0.1:10250").unwrap();
    said(session);
    id
}

#[test]
fn a_slow_reader_pauses_its_peer_once_and_resumes_it() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let id = open(&mut session);
    session.receive(data(id, PAUSE_ABOVE - PIECE), now).unwrap();
    assert_eq!(said(&mut session), []);
    session.receive(data(id, 1), now).unwrap();
    session.receive(data(id, 1), now).unwrap();
    assert_eq!(said(&mut session), [Message::Pause]);
    while let Read::Data(_) = session.read(id, 10_000) {}
    assert_eq!(said(&mut session), [Message::Resume]);
}

/// A session whose peer was paused and sent more all the same.
fn overfilled_after_a_pause() -> (Session, i64) {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let id = open(&mut session);
    session.receive(data(id, PAUSE_ABOVE + 1), now).unwrap();
    assert_eq!(said(&mut session), [Message::Pause]);
    session.receive(data(id, PAUSE_ABOVE + 1), now).unwrap();
    (session, id)
}

#[test]
fn a_peer_that_forgot_a_pause_is_told_again() {
    let (mut session, _) = overfilled_after_a_pause();
    assert_eq!(said(&mut session), [Message::Pause]);
}

#[test]
fn a_peer_that_is_to_be_told_again_and_meanwhile_may_go_on_is_told_that() {
    let (mut session, id) = overfilled_after_a_pause();
    while session.read(id, usize::MAX) != Read::Pending {}
    assert_eq!(said(&mut session), [Message::Resume]);
}

#[test]
fn a_peer_that_ignores_pauses_loses_the_stream_and_not_the_session() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let (bad, good) = (open(&mut session), open(&mut session));
    for _ in 0..=STREAM_MAX / (1 << 20) {
        session.receive(data(bad, 1 << 20), now).unwrap();
    }
    let answers = said(&mut session);
    assert!(
        answers.iter().any(|message| matches!(message, Message::Error(_))),
        "{answers:?}"
    );
    session.receive(data(good, 3), now).unwrap();
    assert!(matches!(session.read(good, 10), Read::Data(_)));
    while let Read::Data(_) = session.read(bad, 1 << 20) {}
    assert!(matches!(session.read(bad, 1), Read::Failed(_)));
}

#[test]
fn a_peer_that_sends_one_byte_at_a_time_fills_no_more_memory() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let id = open(&mut session);
    for _ in 0..=STREAM_MAX / PIECE {
        session.receive(data(id, 1), now).unwrap();
    }
    let answers = said(&mut session);
    assert!(answers.iter().any(|message| matches!(message, Message::Error(_))));
    let mut read = 0;
    while let Read::Data(bytes) = session.read(id, 10) {
        read += bytes.len();
    }
    assert!(read < STREAM_MAX / PIECE, "{read}");
    assert!(matches!(session.read(id, 1), Read::Failed(_)));
}

#[test]
fn writes_wait_while_the_peer_has_paused_and_go_on_after() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let id = open(&mut session);
    let frame = |message| Frame {
        id: 0,
        connection: id,
        message,
    };
    session.receive(frame(Message::Pause), now).unwrap();
    assert_eq!(
        session.write(id, &[1; OUTBOUND_MAX + 1], None),
        Write::Taken(OUTBOUND_MAX)
    );
    assert_eq!(session.write(id, &[1], None), Write::Pending);
    assert_eq!(said(&mut session), []);
    session.receive(frame(Message::Resume), now).unwrap();
    assert_eq!(said(&mut session).len(), 2, "64 KiB in pieces of 32");
}

#[test]
fn what_is_written_goes_out_in_its_order_however_large_the_writes_are_and_before_the_end() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let id = open(&mut session);
    let mut said: Vec<Message> = Vec::new();
    for (size, byte) in [
        (10, 1),
        (10_000, 2),
        (10, 3),
        (40_000, 4),
        (40_000, 5),
        (40_000, 6),
        (5, 7),
        (40_000, 8),
    ] {
        while session.write(id, &vec![byte; size], None) == Write::Pending {
            said.extend(sent(&mut session).0.into_iter().map(|frame| frame.message));
        }
    }
    session.close(id, "EOF", now);
    said.extend(self::said(&mut session));
    assert_eq!(said.last(), Some(&Message::Error("EOF".into())), "{said:?}");
    let first: Vec<u8> = said
        .iter()
        .filter_map(|message| match message {
            Message::Data(data) => data.first().copied(),
            _ => None,
        })
        .collect();
    assert!(first.is_sorted(), "{first:?}");
}

/// A session with so many streams, and those of them that write as much as they may, again and again.
struct Pouring {
    session: Session,
    ids: Vec<i64>,
    writing: Vec<i64>,
}

impl Pouring {
    fn new(streams: usize) -> Self {
        let mut session = Session::new(Role::Dialer, 1, Instant::now());
        let ids: Vec<i64> = (0..streams).map(|_| open(&mut session)).collect();
        let writing = ids.clone();
        Self { session, ids, writing }
    }

    /// Until each has had his first turn, after which those who had theirs may have another one; then it goes round.
    fn warm_up(&mut self) {
        for _ in 0..2 * self.ids.len() * TURN / PASSING_MAX {
            self.round();
        }
    }

    /// What goes out once all have written who may; as the link does, it lets another go on when nothing does.
    fn round(&mut self) -> Vec<Frame> {
        for id in self.writing.drain(..) {
            while let Write::Taken(_) = self.session.write(id, &[7; DATA_MAX], None) {}
        }
        let (frames, mut touched) = sent(&mut self.session);
        if frames.is_empty() {
            touched.extend(self.session.pass_over());
        }
        self.writing.extend(touched.iter().filter(|id| self.ids.contains(*id)));
        frames
    }
}

#[test]
fn a_hundred_writers_have_the_same_share_and_a_paused_one_takes_no_room() {
    let mut pouring = Pouring::new(100);
    let pause = Frame {
        id: 0,
        connection: pouring.ids[0],
        message: Message::Pause,
    };
    pouring.session.receive(pause, Instant::now()).unwrap();
    pouring.warm_up();
    let mut count = BTreeMap::new();
    for _ in 0..1000 {
        let frames = pouring.round();
        assert!(!frames.is_empty(), "somebody has something to say");
        for frame in frames {
            *count.entry(frame.connection).or_insert(0) += 1;
        }
    }
    assert_eq!(count.len(), 99, "{count:?}");
    let (least, most) = (count.values().min().unwrap(), count.values().max().unwrap());
    assert!(most - least <= TURN / DATA_MAX, "more than a turn apart: {count:?}");
}

#[test]
fn who_says_something_now_and_then_waits_for_two_turns_and_not_for_a_hundred() {
    let mut pouring = Pouring::new(100);
    let seldom = pouring.ids.pop().unwrap();
    pouring.writing.pop();
    pouring.warm_up();
    for _ in 0..20 {
        for _ in 0..50 {
            pouring.round();
        }
        let mut before = 0;
        'heard: for _ in 0..1000 {
            let taken = pouring.session.write(seldom, &[8; 10_000], None);
            for frame in pouring.round() {
                match frame.message {
                    Message::Data(_) if frame.connection == seldom => break 'heard,
                    Message::Data(bytes) => before += bytes.len(),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(taken, Write::Pending);
        }
        assert!(before <= 2 * TURN + PASSING_MAX, "after {before} bytes of others");
    }
}

#[test]
fn the_end_of_a_paused_stream_is_told_within_a_minute() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let id = open(&mut session);
    let pause = Frame {
        id: 0,
        connection: id,
        message: Message::Pause,
    };
    session.receive(pause, now).unwrap();
    session.write(id, b"last words", None);
    session.release(id, now);
    assert_eq!(said(&mut session), []);
    let later = now + Duration::from_secs(60);
    session.heard(later);
    session.tick(later).unwrap();
    assert_eq!(said(&mut session), [Message::Error("EOF".into())]);
    assert_eq!(session.open_streams(), 0);
}

#[test]
fn a_connection_that_two_lists_in_a_row_leave_out_is_ended() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let (lost, kept) = (open(&mut session), open(&mut session));
    let sync = |known: &[i64]| Frame {
        id: 0,
        connection: 0,
        message: Message::Sync(known.to_vec()),
    };
    // A list that was made before they were opened, and came half a minute later.
    session.receive(sync(&[]), now + Duration::from_secs(30)).unwrap();
    session
        .receive(sync(&[lost, kept]), now + Duration::from_secs(60))
        .unwrap();
    session.receive(sync(&[kept]), now + Duration::from_secs(120)).unwrap();
    assert_eq!(session.read(lost, 1), Read::Pending);
    session.receive(sync(&[kept]), now + Duration::from_secs(180)).unwrap();
    assert!(matches!(session.read(lost, 1), Read::Failed(_)));
    assert_eq!(session.read(kept, 1), Read::Pending);
    assert_eq!(said(&mut session), [], "it is done without a word");
}

#[test]
fn an_agent_pings_every_five_seconds_and_lists_its_streams_every_minute() {
    let begin = Instant::now();
    let mut session = Session::new(Role::Listener, 1, begin);
    let (mut pings, mut lists) = (0, 0);
    for second in 1..=120 {
        let now = begin + Duration::from_secs(second);
        session.heard(now);
        pings += u32::from(session.tick(now).unwrap().ping);
        lists += said(&mut session)
            .iter()
            .filter(|message| matches!(message, Message::Sync(_)))
            .count();
    }
    assert_eq!((pings, lists), (24, 2));
}

#[test]
fn a_silent_peer_is_given_up() {
    let begin = Instant::now();
    for (role, seconds) in [(Role::Listener, 20), (Role::Dialer, 60)] {
        let mut session = Session::new(role, 1, begin);
        session.tick(begin + Duration::from_secs(seconds - 1)).unwrap();
        session.tick(begin + Duration::from_secs(seconds)).unwrap_err();
    }
}

#[test]
fn a_peer_that_never_reads_its_answers_is_given_up() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let ended = (0..10_000).find_map(|id| session.receive(data(id + 1000, 1), now).err());
    assert!(ended.is_some());
}

#[test]
fn a_server_accepts_no_stream() {
    let now = Instant::now();
    let mut session = Session::new(Role::Dialer, 1, now);
    let connect = Frame {
        id: 0,
        connection: 5,
        message: Message::Connect {
            protocol: "tcp".into(),
            address: "127.0.0.1:22".into(),
        },
    };
    assert_eq!(session.receive(connect, now), Ok(vec![]));
    assert_eq!(said(&mut session), [Message::Error("connect not allowed".into())]);
}
