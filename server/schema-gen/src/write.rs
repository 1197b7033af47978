//! Packs the model into the two files that the server embeds. `server/src/schema/table.rs` is the other side.
//!
//! `table.bin`, all numbers little-endian: magic `AMPSCH02`; counts of messages, fields, kinds, bytes of pool (u32
//! each); then messages (16 bytes each, by definition name), fields (28 bytes each, by message and JSON name; byte 15 of
//! a message's n-th field is the place of its n-th field by tag), kinds (16 bytes each, by group, version, kind), pool
//! (strings: u16 length, bytes; offset 0 is the empty string).
//! `text.bin.gz`: descriptions, each u16 length and bytes; number 0 is empty.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result, anyhow, bail};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::model::{Field, Kind, Message, Model};

/// Strings by offset, each once.
struct Pool {
    bytes: Vec<u8>,
    known: BTreeMap<String, u32>,
}

impl Pool {
    fn put(&mut self, text: &str) -> Result<u32> {
        if let Some(at) = self.known.get(text) {
            return Ok(*at);
        }
        let at = u32::try_from(self.bytes.len())?;
        self.bytes.extend(u16::try_from(text.len())?.to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self.known.insert(text.to_owned(), at);
        Ok(at)
    }
}

/// Descriptions by number, each once.
struct Texts {
    bytes: Vec<u8>,
    known: BTreeMap<String, u16>,
}

impl Texts {
    fn put(&mut self, text: &str) -> Result<u16> {
        if let Some(number) = self.known.get(text) {
            return Ok(*number);
        }
        let number = u16::try_from(self.known.len())?;
        self.bytes.extend(u16::try_from(text.len())?.to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self.known.insert(text.to_owned(), number);
        Ok(number)
    }
}

/// The table and the descriptions.
pub fn pack(model: &Model) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut pool = Pool {
        bytes: Vec::new(),
        known: BTreeMap::new(),
    };
    let mut texts = Texts {
        bytes: Vec::new(),
        known: BTreeMap::new(),
    };
    pool.put("")?;
    texts.put("")?;
    let numbers: BTreeMap<&str, u16> = model
        .messages
        .keys()
        .zip(0..)
        .map(|(name, number)| (name.as_str(), number))
        .collect();
    let number = |name: &str| numbers.get(name).copied().ok_or_else(|| anyhow!("no message {name}"));
    let (mut messages, mut fields, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let mut count = 0_u32;
    for (name, message) in &model.messages {
        pack_message(&mut messages, &mut pool, &mut texts, (name, message), count)?;
        let mut by_tag: Vec<(u16, u8)> = message.fields.values().map(|field| field.tag).zip(0..).collect();
        if by_tag.len() != message.fields.len() {
            bail!("{name} has more members than a byte counts");
        }
        by_tag.sort_unstable();
        for ((json, field), (_, place)) in message.fields.iter().zip(by_tag) {
            let target = match field.kind {
                Kind::Message => number(&field.message).with_context(|| format!("{name}.{json}"))?,
                _ => 0,
            };
            pack_field(&mut fields, &mut pool, &mut texts, (json, field), (target, place))?;
            count += 1;
        }
    }
    for kind in &model.kinds {
        for text in [&kind.group, &kind.version, &kind.kind] {
            kinds.extend(pool.put(text)?.to_le_bytes());
        }
        kinds.extend(number(&kind.message)?.to_le_bytes());
        kinds.extend(0_u16.to_le_bytes());
    }
    let mut table = b"AMPSCH02".to_vec();
    for size in [
        model.messages.len(),
        usize::try_from(count)?,
        model.kinds.len(),
        pool.bytes.len(),
    ] {
        table.extend(u32::try_from(size)?.to_le_bytes());
    }
    for section in [messages, fields, kinds, pool.bytes] {
        table.extend(section);
    }
    Ok((table, texts.bytes))
}

fn pack_message(
    out: &mut Vec<u8>,
    pool: &mut Pool,
    texts: &mut Texts,
    (name, message): (&str, &Message),
    first: u32,
) -> Result<()> {
    out.extend(pool.put(name)?.to_le_bytes());
    out.extend(first.to_le_bytes());
    out.extend(u16::try_from(message.fields.len())?.to_le_bytes());
    out.extend(texts.put(&message.text)?.to_le_bytes());
    let flags = u8::from(message.atomic) | u8::from(message.hidden) << 1;
    out.extend([message.shape as u8, flags, 0, 0]);
    Ok(())
}

fn pack_field(
    out: &mut Vec<u8>,
    pool: &mut Pool,
    texts: &mut Texts,
    (json, field): (&str, &Field),
    (target, place): (u16, u8),
) -> Result<()> {
    let strategy = |name: &str| u16::from(field.strategy.split(',').any(|one| one == name));
    let map = |name: &str| u16::from(field.map == name);
    let flags = u16::from(field.inline)
        | u16::from(field.required) << 1
        | u16::from(field.pointer) << 2
        | u16::from(field.always) << 3
        | strategy("merge") << 4
        | strategy("retainKeys") << 5
        | strategy("replace") << 6
        | map("atomic") << 7
        | map("granular") << 8;
    out.extend(pool.put(json)?.to_le_bytes());
    out.extend(field.tag.to_le_bytes());
    out.extend(target.to_le_bytes());
    out.extend(texts.put(&field.text)?.to_le_bytes());
    out.extend([field.kind as u8, field.repeat as u8]);
    out.extend(flags.to_le_bytes());
    out.extend([field.list as u8, place]);
    for text in [&field.merge_key, &field.keys, &field.default] {
        out.extend(pool.put(text)?.to_le_bytes());
    }
    Ok(())
}

/// As small as it gets.
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// The other way.
#[cfg(test)]
pub fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut out)?;
    Ok(out)
}
