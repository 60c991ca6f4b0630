//! Takes chunked bodies apart (RFC 9112, section 7.1), in one reading only.
//!
//! Nothing is forgiven here: no bare line feed, no space around a size, no control character in an extension. What
//! this proxy reads leniently, another reader of the same bytes may read otherwise.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::proxy::headers::clean_trailers;

/// All chunk extensions of a body together. Nobody needs them, so that they are only a way to keep a reader busy.
const MAX_EXTENSIONS: usize = 16 * 1024;
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;
/// Sixteen hexadecimal digits fill 64 bits.
const MAX_DIGITS: u8 = 16;

/// What the next bytes of a body were.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes of the body, never none.
    Data(Bytes),
    /// All bytes are consumed, and the body goes on.
    More,
    /// The body has ended; what is left of the bytes does not belong to it.
    End(Option<HeaderMap>),
}

/// Where in a chunked body its reader is.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    place: Place,
    extensions: usize,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Size { size: u64, digits: u8 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataEnd,
    DataEndLf,
    // The end of the trailers is looked for in what was kept of them.
    Trailers,
    Done,
}

impl Default for Place {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

impl Chunked {
    /// Consumes bytes up to the end of one piece. Splitting the bytes otherwise does not change the body.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Result<Piece, &'static str> {
        loop {
            if let Place::Data { left } = self.place {
                if bytes.is_empty() {
                    return Ok(Piece::More);
                }
                let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                let left = left - taken as u64;
                self.place = if left == 0 { Place::DataEnd } else { Place::Data { left } };
                return Ok(Piece::Data(bytes.split_to(taken)));
            }
            if matches!(self.place, Place::Done) {
                return Ok(Piece::End(None));
            }
            let Some(&byte) = bytes.first() else { return Ok(Piece::More) };
            bytes.advance(1);
            if matches!(self.place, Place::Trailers) {
                if self.is_end_of_trailers(byte)? {
                    self.place = Place::Done;
                    return self.take_trailers().map(Piece::End);
                }
            } else {
                self.place = self.step(byte)?;
            }
        }
    }

    fn step(&mut self, byte: u8) -> Result<Place, &'static str> {
        Ok(match (self.place, byte) {
            (Place::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err("a chunk is larger than can be");
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Place::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Place::Size { size, digits: 1.. }, b';') => Place::Extension { size },
            (Place::Size { size, digits: 1.. } | Place::Extension { size }, b'\r') => Place::SizeEnd { size },
            (Place::Size { .. }, _) => return Err("the size of a chunk is malformed"),
            (Place::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err("the extensions of the chunks are too long");
                }
                Place::Extension { size }
            }
            (Place::Extension { .. }, _) => return Err("the extension of a chunk is malformed"),
            (Place::SizeEnd { size: 0 }, b'\n') => Place::Trailers,
            (Place::SizeEnd { size }, b'\n') => Place::Data { left: size },
            (Place::DataEnd, b'\r') => Place::DataEndLf,
            (Place::DataEndLf, b'\n') => Place::default(),
            _ => return Err("a chunk does not end where it should"),
        })
    }

    fn is_end_of_trailers(&mut self, byte: u8) -> Result<bool, &'static str> {
        if byte == b'\n' && self.trailers.last() != Some(&b'\r') {
            return Err("a line of the trailers is malformed");
        }
        if self.trailers.len() == MAX_TRAILERS {
            return Err("the trailers are too long");
        }
        self.trailers.push(byte);
        Ok(self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n"))
    }

    fn take_trailers(&mut self) -> Result<Option<HeaderMap>, &'static str> {
        let bytes = Bytes::from(std::mem::take(&mut self.trailers));
        if bytes.len() == 2 {
            return Ok(None);
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
        let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&bytes, &mut fields) else {
            return Err("the trailers are malformed");
        };
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name =
                HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "the trailers are malformed")?;
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
                .map_err(|_| "the trailers are malformed")?;
            trailers.append(name, value);
        }
        clean_trailers(&mut trailers);
        Ok((!trailers.is_empty()).then_some(trailers))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = Result<(Vec<u8>, Option<HeaderMap>, Vec<u8>), &'static str>;

    /// The body, its trailers and what is left over.
    fn read(pieces: &[&[u8]]) -> Read {
        let mut decoder = Chunked::default();
        let (mut data, mut rest, mut end) = (Vec::new(), Vec::new(), None);
        for piece in pieces {
            let mut bytes = Bytes::copy_from_slice(piece);
            while end.is_none() {
                match decoder.next(&mut bytes)? {
                    Piece::Data(some) => data.extend_from_slice(&some),
                    Piece::More => break,
                    Piece::End(trailers) => end = Some(trailers),
                }
            }
            rest.extend_from_slice(&bytes);
        }
        end.map(|trailers| (data, trailers, rest)).ok_or("the body has not ended")
    }

    #[test]
    fn chunks_extensions_and_trailers_are_told_from_data() {
        let body = b"4\r\nWiki\r\n6;a=\"b c\";d\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nX-Sum: 7\r\nHost: a\r\n\r\nHTTP/";
        let (data, trailers, rest) = read(&[body]).unwrap();
        assert_eq!(data, b"Wikipedia in \r\n\r\nchunks.");
        let trailers = trailers.unwrap();
        assert_eq!((trailers.len(), trailers["x-sum"].as_bytes()), (1, &b"7"[..]));
        assert_eq!(rest, b"HTTP/");
        assert_eq!(read(&[b"0\r\n\r\n"]).unwrap(), (vec![], None, vec![]));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_an_error() {
        for body in [
            "\r\n0\r\n\r\n",
            ";x\r\n0\r\n\r\n",
            "+1\r\na\r\n0\r\n\r\n",
            "-1\r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            "1 \r\na\r\n0\r\n\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "1 ;x\r\na\r\n0\r\n\r\n",
            "1\na\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "1;x\ny\r\na\r\n0\r\n\r\n",
            "1;x\ry\r\na\r\n0\r\n\r\n",
            "1;\0\r\na\r\n0\r\n\r\n",
            "10000000000000000\r\na\r\n0\r\n\r\n",
            "00000000000000001\r\na\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\nX: 1\n\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nX: 1\r\n folded\r\n\r\n",
            "0\r\nno field\r\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "0\r\nX: a\rb\r\n\r\n",
        ] {
            assert!(read(&[body.as_bytes()]).is_err(), "{body:?}");
        }
        assert_eq!(read(&[b"1\r\na\r\n"]).unwrap_err(), "the body has not ended");
    }

    #[test]
    fn endless_extensions_and_trailers_come_to_an_end() {
        let small = "1;xxxxxxxxxxxxxxxx\r\na\r\n".repeat(2000);
        let many = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(100));
        let long = format!("0\r\nX: {}\r\n\r\n", "1".repeat(MAX_TRAILERS));
        for body in [small, format!("1;{}", "x".repeat(20_000)), many, long] {
            assert_ne!(read(&[body.as_bytes()]).unwrap_err(), "the body has not ended");
        }
    }

    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let chunk = (prop::collection::vec(any::<u8>(), 1..40), "(;[a-z]{0,3}(=\"[ -~]{0,3}\")?)?");
        (prop::collection::vec(chunk, 0..6), prop::collection::vec("[a-zA-Z-]{1,8}: [ -~]{0,8}\r\n", 0..3))
            .prop_map(|(chunks, trailers)| {
                let mut body = Vec::new();
                for (data, extension) in chunks {
                    body.extend_from_slice(format!("{:x}{extension}\r\n", data.len()).as_bytes());
                    body.extend_from_slice(&data);
                    body.extend_from_slice(b"\r\n");
                }
                body.extend_from_slice(format!("0\r\n{}\r\nrest", trailers.concat()).as_bytes());
                body
            })
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_is_the_same_body(
            body in bodies(),
            broken in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut body = body;
            if let Some((at, byte)) = broken {
                let at = at.index(body.len());
                body[at] = byte;
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect();
            let whole = read(&[&body]);
            prop_assert_eq!(read(&pieces), whole.clone());
            prop_assert_eq!(read(&body.chunks(1).collect::<Vec<_>>()), whole);
        }
    }
}
