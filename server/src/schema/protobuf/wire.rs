//! Protobuf's bytes: records out of a slice, records into a vector. Knows no schema and no Kubernetes.
//!
//! Source: protobuf.dev "Encoding". Unknown groups are skipped, as every reader does; nothing here writes them.

use super::DecodeError;
use super::DecodeError::Malformed;

/// Groups within groups; nobody writes even one.
const MAX_GROUPS: usize = 100;

/// The value of one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire<'b> {
    /// An integer or a boolean.
    Varint(u64),
    /// Eight bytes, as a number.
    Fixed64(u64),
    /// A string, bytes, a message, or packed scalars.
    Bytes(&'b [u8]),
    /// Four bytes or a group: no member of ours has one.
    Other,
}

impl<'b> Wire<'b> {
    /// What must be an integer.
    pub fn varint(self) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(number) => Ok(number),
            Self::Fixed64(_) | Self::Bytes(_) | Self::Other => Err(Malformed("a number has the wrong wire type")),
        }
    }

    /// What must be a string, bytes or a message.
    pub fn bytes(self) -> Result<&'b [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed64(_) | Self::Other => {
                Err(Malformed("a string or message has the wrong wire type"))
            }
        }
    }
}

/// Reads records one after the other.
pub struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    /// Over one message.
    pub const fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next record's tag and value; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Wire<'b>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (tag, kind) = self.key()?;
        let value = match kind {
            3 => {
                self.skip_group(tag)?;
                Wire::Other
            }
            4 => return Err(Malformed("a group ends that never began")),
            kind => self.value(kind)?,
        };
        Ok(Some((tag, value)))
    }

    /// The next varint of packed scalars; `None` at the end.
    pub fn packed(&mut self) -> Result<Option<u64>, DecodeError> {
        match self.rest.is_empty() {
            true => Ok(None),
            false => self.varint().map(Some),
        }
    }

    fn key(&mut self) -> Result<(u32, u8), DecodeError> {
        let key = self.varint()?;
        let kind = u8::try_from(key & 7).unwrap_or_default();
        match u32::try_from(key >> 3) {
            Ok(tag) if (1..1 << 29).contains(&tag) => Ok((tag, kind)),
            Ok(_) | Err(_) => Err(Malformed("a tag is out of range")),
        }
    }

    fn value(&mut self, kind: u8) -> Result<Wire<'b>, DecodeError> {
        Ok(match kind {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take_array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed("a length is out of range"))?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take_array::<4>()?;
                Wire::Other
            }
            _ => return Err(Malformed("an unknown wire type")),
        })
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take_array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed("an integer is out of range"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed("an integer is out of range"))
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed("it breaks off"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed("it breaks off"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn skip_group(&mut self, tag: u32) -> Result<(), DecodeError> {
        let mut open = vec![tag];
        while let Some(&innermost) = open.last() {
            match self.key()? {
                (tag, 3) if open.len() < MAX_GROUPS => open.push(tag),
                (_, 3) => return Err(Malformed("groups are nested too deeply")),
                (tag, 4) if tag == innermost => {
                    open.pop();
                }
                (_, 4) => return Err(Malformed("a group ends that never began")),
                (_, kind) => {
                    self.value(kind)?;
                }
            }
        }
        Ok(())
    }
}

/// A bare varint.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or_default());
}

fn put_key(out: &mut Vec<u8>, tag: u16, kind: u64) {
    put_varint(out, u64::from(tag) << 3 | kind);
}

/// An integer or a boolean.
pub fn put_number(out: &mut Vec<u8>, tag: u16, number: u64) {
    put_key(out, tag, 0);
    put_varint(out, number);
}

/// A double.
pub fn put_double(out: &mut Vec<u8>, tag: u16, number: f64) {
    put_key(out, tag, 1);
    out.extend(number.to_le_bytes());
}

/// The head of `length` bytes that the caller puts after it.
pub fn put_head(out: &mut Vec<u8>, tag: u16, length: usize) {
    put_key(out, tag, 2);
    put_varint(out, u64::try_from(length).unwrap_or(u64::MAX));
}

/// A string or bytes.
pub fn put_bytes(out: &mut Vec<u8>, tag: u16, bytes: &[u8]) {
    put_head(out, tag, bytes.len());
    out.extend_from_slice(bytes);
}

/// A message that `write` writes. Its length is put before it afterwards: most are short, so little is moved.
pub fn put_message<E>(out: &mut Vec<u8>, tag: u16, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    put_key(out, tag, 2);
    let start = out.len();
    write(out)?;
    let mut head = Vec::with_capacity(10);
    put_varint(&mut head, u64::try_from(out.len() - start).unwrap_or(u64::MAX));
    out.splice(start..start, head);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut out = Vec::new();
        put_number(&mut out, 1, u64::MAX);
        put_double(&mut out, 2, -0.5);
        put_bytes(&mut out, 300, b"text");
        put_message(&mut out, 4, |out| {
            put_bytes(out, 1, &[7; 200]);
            Ok::<_, DecodeError>(())
        })
        .unwrap();
        let mut reader = Reader::new(&out);
        assert_eq!(reader.next(), Ok(Some((1, Wire::Varint(u64::MAX)))));
        assert_eq!(reader.next(), Ok(Some((2, Wire::Fixed64((-0.5_f64).to_bits())))));
        assert_eq!(reader.next(), Ok(Some((300, Wire::Bytes(b"text")))));
        let Ok(Some((4, Wire::Bytes(inner)))) = reader.next() else {
            panic!("no message")
        };
        assert_eq!(Reader::new(inner).next(), Ok(Some((1, Wire::Bytes(&[7; 200])))));
        assert_eq!(reader.next(), Ok(None));
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        for bytes in [
            &[0x08][..],                                                         // no value
            &[0x0a, 5, 1],                                                       // breaks off
            &[0x00, 1],                                                          // tag 0
            &[0x0f],                                                             // wire type 7
            &[0x0c],                                                             // a group's end
            &[0x0b, 0x14],                                                       // another group's end
            &[0x0b],                                                             // a group without an end
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], // 65 bits
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // a length of 2^64 - 1
            &[0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00], // a tag of 61 bits
        ] {
            assert!(Reader::new(bytes).next().is_err(), "{bytes:?}");
        }
        assert!(Reader::new(&[0x0b; 5000]).next().is_err());
    }

    #[test]
    fn groups_and_four_byte_values_are_stepped_over() {
        let bytes = [0x0b, 0x13, 0x08, 1, 0x14, 0x0c, 0x1d, 1, 2, 3, 4, 0x20, 9];
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.next(), Ok(Some((1, Wire::Other))));
        assert_eq!(reader.next(), Ok(Some((3, Wire::Other))));
        assert_eq!(reader.next(), Ok(Some((4, Wire::Varint(9)))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_every_record_makes_progress(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = Reader::new(&bytes);
            for _ in 0..bytes.len() {
                match reader.next() {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Ok(()),
                }
            }
            prop_assert!(matches!(reader.next(), Ok(None) | Err(_)));
        }
    }
}
