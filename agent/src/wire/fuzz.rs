//! Frames and tokens as nobody writes them: ten thousand of each by a seed, made of good ones, and the kept cases of
//! `vectors/`. `SEED=4711 cargo test -p agent fuzz` replays one; what fails is put into the file.

use bytes::Bytes;

use super::frame::{Frame, MAX_ADDRESS, MAX_REASON, Message};
use super::token::{Credential, Token, secure};
use crate::chance::{Random, simulate};

const SEEDS: u64 = 20_000;
const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// A byte that is no UTF-8 is read as a character of three.
const REPLACEMENT: usize = char::REPLACEMENT_CHARACTER.len_utf8();

/// A frame that a peer might send.
pub(crate) fn frame(random: &mut Random) -> Frame {
    const IDS: [i64; 8] = [0, 1, 2, 3, 4, -1, i64::MIN, i64::MAX];
    let text = "tcp/127.0.0.1:10250/ä€😀".repeat(1 + random.next(20));
    let message = match random.next(8) {
        0 => Message::Data(vec![7; [0, 1, 300, 40_000][random.next(4)]].into()),
        1 | 2 => Message::Connect {
            protocol: "tcp".to_owned(),
            address: text,
        },
        3 => Message::Error(text),
        4 => Message::Pause,
        5 => Message::Resume,
        6 => Message::Sync((0..random.next(40)).map(|at| IDS[at % IDS.len()]).collect()),
        _ => Message::Unknown(IDS[random.next(IDS.len())].saturating_mul(3)),
    };
    Frame {
        id: IDS[random.next(IDS.len())],
        connection: IDS[random.next(IDS.len())],
        message,
    }
}

/// Spoils a text in up to four places.
pub(crate) fn spoil(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.next(5) {
        let at = random.next(bytes.len() + 1);
        let byte = random.next(256).to_le_bytes()[0];
        match random.next(7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, byte),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 if at < bytes.len() => bytes[at] ^= 1 << random.next(8),
            4 => drop(bytes.splice(at..at, std::iter::repeat_n(0xff, random.next(20)))),
            5 => bytes.rotate_left(at),
            _ => bytes.extend_from_within(at..),
        }
    }
}

/// What is read is no more than was sent, and is read again when it is written.
fn judge(bytes: &Bytes) -> bool {
    let Ok(frame) = Frame::decode(bytes) else {
        return false;
    };
    match &frame.message {
        Message::Data(data) => assert!(data.len() < bytes.len()),
        Message::Connect { protocol, address } => {
            assert!(protocol.len() + address.len() <= MAX_ADDRESS * REPLACEMENT);
        }
        Message::Error(reason) => assert!(reason.len() <= MAX_REASON * REPLACEMENT),
        Message::Sync(ids) => assert!(ids.len() * 8 < bytes.len()),
        Message::Pause | Message::Resume | Message::Unknown(_) => {}
    }
    // Texts are cut when they are written and once more when they are read; after that nothing changes.
    let again = Frame::decode(&frame.encode()).unwrap();
    assert_eq!(Frame::decode(&again.encode()).as_ref(), Ok(&again));
    assert_eq!((again.id, again.connection), (frame.id, frame.connection));
    true
}

#[test]
fn fuzzed_frames_are_refused_or_read_within_their_bounds() {
    simulate(SEEDS, |seed| {
        let mut random = Random::new(seed);
        let mut bytes = frame(&mut random).encode().to_vec();
        spoil(&mut random, &mut bytes);
        judge(&bytes.into());
    });
}

#[test]
fn kept_frames_are_read_as_noted() {
    let mut seen = 0;
    for line in include_str!("../../vectors/frames.txt").lines() {
        let Some((verdict, digits)) = line
            .split_once(' ')
            .or(Some((line, "")))
            .filter(|(word, _)| *word != "#")
        else {
            continue;
        };
        let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b' ').collect();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let bytes: Bytes = digits.chunks(2).map(pair).collect();
        assert_eq!(judge(&bytes), verdict != "refused", "{line}");
        if verdict == "ok" {
            assert_eq!(Frame::decode(&bytes).unwrap().encode(), bytes, "{line}");
        }
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

/// A token that is read is one that can be sent, shows itself to nobody, and is read again from its secure form.
fn judge_token(text: &str) -> bool {
    let Ok(token) = Token::parse(text) else { return false };
    assert!(token.ca_hash.as_ref().is_none_or(|hash| hash.len() == 64));
    assert!(
        token
            .authorization("node")
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte))
    );
    if let Credential::Password { user, password } = &token.credential {
        assert!(!password.expose().is_empty() && !user.contains(':'));
        let shown = format!("{token:?}");
        assert!(
            password.expose().len() < 8 || !shown.contains(&format!("{:?}", password.expose())),
            "{shown}"
        );
        let again = Token::parse(secure(HASH, "node", password).expose()).unwrap();
        assert_eq!(again.authorization("node"), token.authorization("node"));
    }
    true
}

#[test]
fn fuzzed_tokens_are_refused_or_can_be_used() {
    let seeds = [
        format!("K10{HASH}::server:very-secret"),
        format!("K10{HASH}::abcdef.0123456789abcdef"),
        "abcdef.0123456789abcdef".to_owned(),
        "K10:::very-secret".to_owned(),
        "pässwörd:with::colons".to_owned(),
    ];
    simulate(SEEDS, |seed| {
        let mut random = Random::new(seed);
        let mut bytes = seeds[random.next(seeds.len())].clone().into_bytes();
        spoil(&mut random, &mut bytes);
        judge_token(&String::from_utf8_lossy(&bytes));
    });
}

#[test]
fn kept_tokens_are_read_as_noted() {
    let mut seen = 0;
    for line in include_str!("../../vectors/tokens.txt").lines() {
        let Some((verdict, text)) = line.split_once('\t') else {
            continue;
        };
        let text = text.replace('H', HASH);
        assert_eq!(judge_token(&text), verdict == "ok", "{line}");
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}
