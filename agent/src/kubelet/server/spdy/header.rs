//! SPDY's header blocks: names and values, in one zlib stream a direction. Pure.
//!
//! A client primes its stream with a dictionary that both ends know. Our inflater takes no dictionary, but a dictionary is
//! nothing but text that went before: it is fed as an uncompressed block, and what comes of it is thrown away. Our own
//! stream goes without, which zlib lets a reader see (`FDICT`).
//!
//! Source: SPDY/3 draft, 2.6.10 (the block) and 2.6.10.1 (the dictionary).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Larger blocks are no client's: there are a handful of short headers.
pub const BLOCK_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// The dictionary's words, each of which has its length before it, and its tail.
const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|\
    age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|\
    content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|\
    if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
    proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
    user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|\
    keep-alive|origin";
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
/// The dictionary's Adler-32, by which a stream names it.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];
/// Bits of a zlib stream's first two bytes: the method, and whether there is a dictionary.
const DEFLATE: u8 = 8;
const FDICT: u8 = 0x20;

/// A block that cannot be read; the stream is lost with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a header block is damaged or too large")]
pub struct BadBlock;

/// Names in lower case, and values.
pub type Headers = Vec<(String, String)>;

/// The value of a header, empty without it.
pub fn value<'a>(headers: &'a Headers, name: &str) -> &'a str {
    let found = headers.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str()).unwrap_or_default()
}

fn dictionary() -> Vec<u8> {
    let mut all = Vec::new();
    for word in WORDS.split('|') {
        all.extend(u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        all.extend(word.as_bytes());
    }
    all.extend(TAIL.as_bytes());
    all
}

/// Reads one direction's blocks, in order.
#[derive(Debug)]
pub struct Inflater {
    raw: Decompress,
    /// The first bytes, until they say how the stream begins.
    head: Option<Vec<u8>>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self {
            raw: Decompress::new(false),
            head: Some(Vec::new()),
        }
    }
}

impl Inflater {
    /// Reads the next block.
    ///
    /// # Errors
    /// [`BadBlock`].
    pub fn read(&mut self, compressed: &[u8]) -> Result<Headers, BadBlock> {
        let first;
        let rest = match self.head.take() {
            None => compressed,
            Some(mut head) => {
                head.extend_from_slice(compressed);
                first = head;
                self.begin(&first)?
            }
        };
        let block = self.inflate(rest, BLOCK_MAX)?;
        parse(&block).ok_or(BadBlock)
    }

    /// Takes the zlib header away, and makes the dictionary known.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BadBlock> {
        let (method, flags) = (*bytes.first().ok_or(BadBlock)?, *bytes.get(1).ok_or(BadBlock)?);
        if method & 0x0f != DEFLATE {
            return Err(BadBlock);
        }
        if flags & FDICT == 0 {
            return bytes.get(2..).ok_or(BadBlock);
        }
        if bytes.get(2..6) != Some(&DICTIONARY_ID) {
            return Err(BadBlock);
        }
        let dictionary = dictionary();
        let length = u16::try_from(dictionary.len()).map_err(|_| BadBlock)?;
        let mut stored = vec![0]; // not the last block, stored
        stored.extend(length.to_le_bytes());
        stored.extend((!length).to_le_bytes());
        stored.extend(&dictionary);
        match self.inflate(&stored, dictionary.len())? == dictionary {
            true => bytes.get(6..).ok_or(BadBlock),
            false => Err(BadBlock),
        }
    }

    fn inflate(&mut self, mut from: &[u8], most: usize) -> Result<Vec<u8>, BadBlock> {
        // One byte more, so that what is too large shows.
        let mut out = Vec::with_capacity(most + 1);
        loop {
            let (taken, made) = (self.raw.total_in(), out.len());
            let status = self
                .raw
                .decompress_vec(from, &mut out, FlushDecompress::Sync)
                .map_err(|_| BadBlock)?;
            let taken = usize::try_from(self.raw.total_in() - taken).map_err(|_| BadBlock)?;
            from = from.get(taken..).unwrap_or_default();
            if out.len() > most || status == Status::StreamEnd {
                return Err(BadBlock);
            }
            if from.is_empty() && out.len() == made {
                return Ok(out);
            }
            if taken == 0 && out.len() == made {
                return Err(BadBlock);
            }
        }
    }
}

fn parse(block: &[u8]) -> Option<Headers> {
    fn word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (word, after) = (after.get(..length)?, after.get(length..)?);
        *rest = after;
        Some(word)
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let (count, mut rest) = block.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_be_bytes(*count))
        .ok()
        .filter(|count| *count <= HEADERS_MAX)?;
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, value) = (text(word(&mut rest)?)?, text(word(&mut rest)?)?);
        headers.push((name.to_ascii_lowercase(), value));
    }
    rest.is_empty().then_some(headers)
}

/// Writes one direction's blocks, in order.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        Self(Compress::new(Compression::fast(), true))
    }
}

impl Deflater {
    /// A block.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let number = |length: usize| u32::try_from(length).unwrap_or_default().to_be_bytes();
        let mut block = number(headers.len()).to_vec();
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(number(word.len()));
            block.extend(word.as_bytes());
        }
        // A block that cannot be made smaller grows by a few bytes.
        let mut out = Vec::with_capacity(block.len() + 64);
        let mut rest = block.as_slice();
        loop {
            let before = (self.0.total_in(), out.len());
            let _ = self.0.compress_vec(rest, &mut out, FlushCompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before.0).unwrap_or(rest.len());
            rest = rest.get(taken..).unwrap_or_default();
            if rest.is_empty() && out.len() < out.capacity() {
                return out;
            }
            out.reserve(64 + rest.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_one_that_streams_name() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!(((b << 16) | a).to_be_bytes(), DICTIONARY_ID);
        assert_eq!(dictionary().len(), 1423);
    }

    /// What a Go client sends first: zlib with the dictionary, two blocks. Made with Python's zlib, level 9.
    const FROM_GO: [&str; 2] = [FIRST, SECOND];
    const FIRST: &str = "78f9e3c6a7c202256f703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0658cb32460300000000ffff";
    const SECOND: &str = "c26a26a8784a24db4800000000ffff";

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    #[test]
    fn blocks_that_use_the_dictionary_are_read() {
        let mut inflater = Inflater::default();
        for (hex, kind) in FROM_GO.into_iter().zip(["error", "data"]) {
            let headers = inflater.read(&bytes(hex)).unwrap();
            assert_eq!(value(&headers, "streamtype"), kind);
            assert_eq!(
                (value(&headers, "port"), value(&headers, "content-length")),
                ("8080", "0")
            );
        }
        assert_eq!(inflater.read(&bytes("ffff")), Err(BadBlock));
    }

    #[test]
    fn a_block_that_grows_beyond_its_bound_is_refused() {
        let long = "x".repeat(BLOCK_MAX);
        let block = Deflater::default().write(&[("a", &long)]);
        assert!(block.len() < 1000);
        assert_eq!(Inflater::default().read(&block), Err(BadBlock));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            blocks in prop::collection::vec(prop::collection::vec(("[a-z-]{0,12}", "[ -~é]{0,40}"), 0..6), 1..6),
        ) {
            let (mut writer, mut reader) = (Deflater::default(), Inflater::default());
            for block in blocks {
                let borrowed: Vec<(&str, &str)> = block.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
                prop_assert_eq!(reader.read(&writer.write(&borrowed)), Ok(block));
            }
        }

        #[test]
        fn no_bytes_are_too_strange_to_be_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Inflater::default().read(&bytes);
            let _ = parse(&bytes);
        }
    }
}
