//! Finds requests whose end could be read in two ways.
//!
//! hyper resolves such requests in its own way and shows the handler only the outcome: where it sees
//! `Transfer-Encoding` it drops `Content-Length`, and it drops repeated lengths. That is sound for hyper,
//! but what stands before or behind this proxy may have resolved them otherwise, and then a request can hide
//! within another. So the bytes are followed here on their way to hyper, and such a request is refused.

use std::cell::Cell;

// hyper refuses lines that do not fit its buffer of this size.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// Follows the requests of one connection through its bytes.
#[derive(Debug)]
pub(super) struct Framing {
    place: Place,
    head: Head,
    // The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    heads: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    // Nothing that follows can be understood; hyper closes such connections.
    Lost,
}

#[derive(Clone, Copy, Debug, Default)]
struct Head {
    begun: bool,
    lengths: u32,
    length: Option<u64>,
    encodings: u32,
    chunked: bool,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { place: Place::Head, head: Head::default(), line: Vec::new(), heads: 0 }
    }

    /// Whether nothing of a next request has come yet.
    pub(super) fn at_rest(&self) -> bool {
        self.place == Place::Head && !self.head.begun && self.line.is_empty()
    }

    /// Follows what was read. `sound` is how many requests, from the first on, can be read in one way only.
    pub(super) fn feed(&mut self, bytes: &[u8], sound: &Cell<u64>) {
        let was_lost = self.place == Place::Lost;
        self.follow(bytes);
        if self.place == Place::Lost && !was_lost {
            // From here on nothing is sound, beginning with the request whose head was not completed.
            sound.set(self.heads);
        }
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.place {
                Place::Lost => return,
                Place::Body(left) | Place::Chunk(left) => {
                    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    bytes = &bytes[taken..];
                    self.place = match (self.place, left - taken as u64) {
                        (Place::Body(_), 0) => Place::Head,
                        (Place::Body(_), left) => Place::Body(left),
                        (_, 0) => Place::ChunkEnd,
                        (_, left) => Place::Chunk(left),
                    };
                }
                Place::Head | Place::ChunkSize | Place::ChunkEnd | Place::Trailers => {
                    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                        return self.keep(bytes);
                    };
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    if self.line.is_empty() {
                        self.take_line(line);
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.take_line(&whole);
                    }
                }
            }
        }
    }

    fn keep(&mut self, beginning: &[u8]) {
        if self.line.len() + beginning.len() > MAX_LINE {
            self.line = Vec::new();
            self.lose();
        } else {
            self.line.extend_from_slice(beginning);
        }
    }

    fn take_line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.place {
            Place::Head if !self.head.begun => self.head.begun = !line.is_empty(),
            Place::Head if line.is_empty() => self.end_head(),
            Place::Head => self.head.take_field(line),
            Place::ChunkSize => match chunk_size(line) {
                Some(0) => self.place = Place::Trailers,
                Some(size) => self.place = Place::Chunk(size),
                None => self.lose(),
            },
            Place::ChunkEnd if line.is_empty() => self.place = Place::ChunkSize,
            Place::ChunkEnd => self.lose(),
            Place::Trailers if line.is_empty() => self.place = Place::Head,
            Place::Trailers | Place::Body(_) | Place::Chunk(_) | Place::Lost => {}
        }
    }

    fn end_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.place = match head {
            Head { lengths: 0, encodings: 0, .. } => Place::Head,
            Head { lengths: 1, length: Some(0), encodings: 0, .. } => Place::Head,
            Head { lengths: 1, length: Some(length), encodings: 0, .. } => Place::Body(length),
            Head { lengths: 0, encodings: 1, chunked: true, .. } => Place::ChunkSize,
            _ => return self.lose(),
        };
        self.heads += 1;
    }

    fn lose(&mut self) {
        self.place = Place::Lost;
    }
}

impl Head {
    fn take_field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            self.length = digits(value, 10);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encodings += 1;
            self.chunked = value.eq_ignore_ascii_case(b"chunked");
        }
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|byte| *byte == b';').next().unwrap_or(line);
    digits(size.trim_ascii(), 16)
}

/// A number of digits alone: no sign, no list.
pub(super) fn digits(text: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('+') { None } else { u64::from_str_radix(text, radix).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests were seen and where the first that is not sound stands.
    fn follow(pieces: &[&[u8]]) -> (u64, u64) {
        let (mut framing, sound) = (Framing::new(), Cell::new(SOUND));
        pieces.iter().for_each(|piece| framing.feed(piece, &sound));
        (framing.heads, sound.get())
    }

    const SOUND: u64 = u64::MAX;

    #[test]
    fn requests_one_behind_the_other_are_told_apart() {
        let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let sized = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n\n\n\n\n\n";
        let chunked = b"\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n\
            4;x=y\r\n\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n";
        let all = [&get[..], sized, chunked, get].concat();
        assert_eq!(follow(&[&all]), (4, SOUND));
        for cut in 0..all.len() {
            assert_eq!(follow(&[&all[..cut], &all[cut..]]), (4, SOUND), "cut at {cut}");
        }
        let single_bytes: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(follow(&single_bytes), (4, SOUND));
    }

    #[test]
    fn two_ways_to_end_are_noticed_in_any_order() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 1",
            "Content-Length: 1\r\nContent-Length: 1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Content-Length:",
        ] {
            let request = format!("GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n{fields}\r\n\r\n");
            assert_eq!(follow(&[request.as_bytes()]), (1, 1), "{fields}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_not_sound() {
        let endless = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'x'; MAX_LINE], b"\r\n\r\n"].concat();
        assert_eq!(follow(&[&endless[..100], &endless[100..MAX_LINE], &endless[MAX_LINE..]]), (1, SOUND));
        let pieces: Vec<&[u8]> = vec![b"GET / HTTP/1.1\r\n", &[b'x'; MAX_LINE], b"x"];
        assert_eq!(follow(&pieces), (0, 0));
        let bad_chunk = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        assert_eq!(follow(&[bad_chunk]), (1, 1));
    }
}
