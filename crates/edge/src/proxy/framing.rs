//! Finds requests that could be read in two ways.
//!
//! hyper resolves such requests in its own way and shows the handler only the outcome: where it sees
//! `Transfer-Encoding` it drops `Content-Length`, it drops repeated lengths, takes a bare line feed for the end of a
//! line, and ignores white space behind the size of a chunk. That is sound for hyper, but what stands before or behind
//! this proxy may resolve them otherwise, and then a request can hide within another. So the bytes are followed here on
//! their way to hyper, and such a request is refused.

// hyper refuses lines that do not fit its buffer of this size.
pub(super) const MAX_LINE: usize = 64 * 1024;
// Extensions of chunks mean nothing to anybody; what is longer is an attack.
const MAX_CHUNK_LINE: usize = 256;

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
    ambiguous: bool,
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

    /// Follows what was read. Once something can be read in two ways, and from then on for ever, it says in which
    /// request that is, counted from 0.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<u64> {
        if self.place == Place::Lost {
            return None;
        }
        let lost = self.follow(bytes)?;
        self.place = Place::Lost;
        self.line = Vec::new();
        Some(lost)
    }

    /// The number of the request in which the way was lost.
    fn follow(&mut self, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            match self.place {
                Place::Lost => return None,
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
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        if self.line.len() + bytes.len() > MAX_LINE {
                            return Some(self.here());
                        }
                        self.line.extend_from_slice(bytes);
                        return None;
                    };
                    let (line, rest) = bytes.split_at(end);
                    bytes = rest.get(1..).unwrap_or_default();
                    let here = self.here();
                    let followed = if self.line.is_empty() {
                        self.take_line(line)
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.take_line(&whole)
                    };
                    if followed.is_none() {
                        return Some(here);
                    }
                }
            }
        }
        None
    }

    /// The number of the request that is read.
    fn here(&self) -> u64 {
        if self.place == Place::Head { self.heads } else { self.heads.saturating_sub(1) }
    }

    /// Takes a line without its line feed. `None` where it can be read in two ways.
    fn take_line(&mut self, line: &[u8]) -> Option<()> {
        let Some(line) = line.strip_suffix(b"\r") else {
            // A bare line feed. The head is followed to its end nevertheless: hyper goes on to there.
            self.head.ambiguous = true;
            return if self.place == Place::Head { self.take_head_line(line) } else { None };
        };
        match self.place {
            Place::Head => self.take_head_line(line)?,
            Place::ChunkSize => {
                self.place = match chunk_size(line)? {
                    0 => Place::Trailers,
                    size => Place::Chunk(size),
                }
            }
            Place::ChunkEnd if line.is_empty() => self.place = Place::ChunkSize,
            Place::ChunkEnd => return None,
            Place::Trailers if line.is_empty() => self.place = Place::Head,
            Place::Trailers if is_field(line) => {}
            Place::Trailers | Place::Body(_) | Place::Chunk(_) | Place::Lost => return None,
        }
        Some(())
    }

    fn take_head_line(&mut self, line: &[u8]) -> Option<()> {
        if !self.head.begun {
            // Empty lines before a request are allowed for old clients.
            self.head.begun = !line.is_empty();
            // A fragment is never sent; hyper would drop it, and others would not.
            self.head.ambiguous |= memchr::memchr(b'#', line).is_some();
            return Some(());
        }
        if !line.is_empty() {
            self.head.take_field(line);
            return Some(());
        }
        let head = std::mem::take(&mut self.head);
        self.place = match head {
            Head { ambiguous: true, .. } => return None,
            Head { lengths: 0, encodings: 0, .. } => Place::Head,
            Head { lengths: 1, length: Some(0), encodings: 0, .. } => Place::Head,
            Head { lengths: 1, length: Some(length), encodings: 0, .. } => Place::Body(length),
            Head { lengths: 0, encodings: 1, chunked: true, .. } => Place::ChunkSize,
            _ => return None,
        };
        self.heads += 1;
        Some(())
    }
}

impl Head {
    fn take_field(&mut self, line: &[u8]) {
        // Only the two that matter are compared: by their lengths, most fields are passed by at once.
        let named = |name: &[u8]| {
            line.get(name.len()) == Some(&b':')
                && line.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name))
        };
        if named(b"content-length") {
            self.lengths += 1;
            self.length = digits(line["content-length:".len()..].trim_ascii(), 10);
        } else if named(b"transfer-encoding") {
            self.encodings += 1;
            self.chunked = line["transfer-encoding:".len()..].trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if !is_field(line) {
            self.ambiguous = true;
        }
    }
}

/// Whether the line has a name, and the colon directly behind it. hyper looks at the rest.
fn is_field(line: &[u8]) -> bool {
    match memchr::memchr(b':', line) {
        None | Some(0) => false,
        Some(colon) => !matches!(line[0], b' ' | b'\t') && !matches!(line[colon - 1], b' ' | b'\t'),
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|byte| *byte == b';').next()?;
    // A quote that stays open would go on in the next line, for those who read it so.
    let quotes = memchr::memchr_iter(b'"', line).count();
    let sound = line.len() <= MAX_CHUNK_LINE
        && quotes.is_multiple_of(2)
        && !line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
    if sound { digits(size, 16) } else { None }
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
    fn follow(pieces: &[&[u8]]) -> (u64, Option<u64>) {
        let mut framing = Framing::new();
        let lost: Vec<u64> = pieces.iter().filter_map(|piece| framing.feed(piece)).collect();
        assert!(lost.len() < 2, "lost twice");
        (framing.heads, lost.first().copied())
    }

    #[test]
    fn requests_one_behind_the_other_are_told_apart() {
        let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let sized = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n\n\n\n\n\n";
        let chunked = b"\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n\
            4;x=y\r\n\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n";
        let all = [&get[..], sized, chunked, get].concat();
        assert_eq!(follow(&[&all]), (4, None));
        for cut in 0..all.len() {
            assert_eq!(follow(&[&all[..cut], &all[cut..]]), (4, None), "cut at {cut}");
        }
        let single_bytes: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(follow(&single_bytes), (4, None));
    }

    #[test]
    fn two_ways_to_read_a_head_are_noticed() {
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
            "Content-Length : 1",
            "X: a\r\n Content-Length: 1",
            "X: a\r\n\tb",
            "X: a\nContent-Length: 1",
            "no field",
            ": no name",
        ] {
            let request = format!("GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n{fields}\r\n\r\n");
            assert_eq!(follow(&[request.as_bytes()]), (1, Some(1)), "{fields}");
        }
        assert_eq!(follow(&[b"GET /#x HTTP/1.1\r\n\r\n"]), (0, Some(0)));
        assert_eq!(follow(&[b"GET / HTTP/1.1\n\n"]), (0, Some(0)));
    }

    #[test]
    fn two_ways_to_read_a_chunk_are_noticed() {
        for chunks in [
            "zz\r\n",
            "5 \r\n",
            " 5\r\n",
            "5\n",
            "+5\r\n",
            "0x5\r\n",
            "\r\n",
            "5;a\rb\r\n",
            "5;a=\"\r\n",
            "1\r\nab\r\n",
            "0\r\nX : 1\r\n",
        ] {
            let request = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
            assert_eq!(follow(&[request.as_bytes()]), (1, Some(0)), "{chunks}");
        }
        let long = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;{}\r\n", "x".repeat(300));
        assert_eq!(follow(&[long.as_bytes()]), (1, Some(0)));
    }

    #[test]
    fn what_cannot_be_followed_is_not_sound() {
        let endless = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'x'; MAX_LINE], b"\r\n\r\n"].concat();
        assert_eq!(follow(&[&endless[..100], &endless[100..MAX_LINE], &endless[MAX_LINE..]]), (1, None));
        let pieces: Vec<&[u8]> = vec![b"GET / HTTP/1.1\r\n", &[b'x'; MAX_LINE], b"x"];
        assert_eq!(follow(&pieces), (0, Some(0)));
    }
}
