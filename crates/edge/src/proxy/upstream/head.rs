//! Heads on the wire: requests as an upstream gets them, answers as it gave them.

use std::io::Write;
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, request, response};
use httparse::Status;
use hyper::ext::ReasonPhrase;

/// Largest head of an answer in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 128;

/// How the length of a request's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sized {
    Empty,
    Length(u64),
    Chunked,
}

/// How the end of an answer's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// What of a request decides how its answer is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) head: bool,
    pub(super) upgrade: bool,
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: response::Parts,
    pub(super) framing: Framing,
    /// Whether the upstream keeps the connection behind this answer.
    pub(super) keeps: bool,
}

/// What the bytes that an upstream sent begin with.
#[derive(Debug)]
pub(super) enum Parsed {
    Partial,
    /// An answer that is followed by another, and the length of its head.
    Interim(usize),
    /// The answer, and the length of its head.
    Final(usize, Answer),
}

impl Asked {
    /// A switch of protocols behind a body is not asked for: its end would have to be found first.
    pub(super) fn by(head: &request::Parts, sized: Sized) -> Self {
        let upgrade = sized == Sized::Empty && head.headers.contains_key(UPGRADE);
        Self { head: head.method == Method::HEAD, upgrade }
    }
}

/// Writes a request's head. How long its body is stands here as `sized` says, whatever the fields say.
///
/// `Upgrade` is there only where the client asked its connection to be upgraded, and is asked of this one in turn.
pub(super) fn write(out: &mut Vec<u8>, head: &request::Parts, sized: Sized, address: SocketAddr) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    if !target.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in &head.headers {
        if ![CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE].contains(name) {
            write_field(out, name, value);
        }
    }
    if let Some(protocol) = head.headers.get(UPGRADE).filter(|_| sized == Sized::Empty) {
        out.extend_from_slice(b"connection: upgrade\r\n");
        write_field(out, &UPGRADE, protocol);
    }
    // Writing to a vector cannot fail.
    let _ = match sized {
        Sized::Empty if head.headers.contains_key(CONTENT_LENGTH) => out.write_all(b"content-length: 0\r\n"),
        Sized::Empty => Ok(()),
        Sized::Length(length) => write!(out, "content-length: {length}\r\n"),
        Sized::Chunked => out.write_all(b"transfer-encoding: chunked\r\n"),
    };
    if !head.headers.contains_key(HOST) {
        let _ = write!(out, "host: {address}\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A length as it may stand in a header: digits alone.
pub(super) fn length(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// Reads the head of an answer; its fields share the memory of `bytes`.
pub(super) fn parse(bytes: &Bytes, asked: Asked) -> Result<Parsed, &'static str> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let end = match httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        bytes,
        &mut fields,
    ) {
        Ok(Status::Complete(end)) if end <= MAX_HEAD && has_sound_lines(&bytes[..end]) => end,
        Ok(Status::Complete(end)) if end <= MAX_HEAD => {
            return Err("a line of the answer's head is malformed");
        }
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => return Ok(Parsed::Partial),
        Ok(_) => return Err("the head of the answer is too large"),
        Err(httparse::Error::TooManyHeaders) => return Err("the answer has too many fields"),
        Err(_) => return Err("the head of the answer is malformed"),
    };
    let (Some(code @ 100..600), Some(minor)) = (parsed.code, parsed.version) else {
        return Err("the status of the answer is invalid");
    };
    let status = StatusCode::from_u16(code).map_err(|_| "the status of the answer is invalid")?;
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Parsed::Interim(end));
    }
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = status;
    head.version = Version::HTTP_11;
    if let Some(reason) = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason())
        && let Ok(reason) = ReasonPhrase::try_from(bytes.slice_ref(reason.as_bytes()))
    {
        head.extensions.insert(reason);
    }
    head.headers.reserve(parsed.headers.len());
    let mut hops = Hops::default();
    for field in parsed.headers.iter() {
        let malformed = "a field of the answer is malformed";
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| malformed)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).map_err(|_| malformed)?;
        if !hops.take(&name, &value)? {
            head.headers.append(name, value);
        }
    }
    for name in &hops.named {
        head.headers.remove(name);
    }
    let keeps = if minor == 0 { hops.keep_alive && !hops.close } else { !hops.close };
    let framing = framing(&mut head.headers, &hops, status, minor, asked)?;
    let keeps = keeps && framing != Framing::UntilClose && status != StatusCode::SWITCHING_PROTOCOLS;
    Ok(Parsed::Final(end, Answer { head, framing, keeps }))
}

/// Whether each line ends with CR LF, and the first says the status. The parser takes less for it.
fn has_sound_lines(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/")
        && memchr::memchr_iter(b'\n', head).all(|end| end > 0 && head[end - 1] == b'\r')
}

/// What an answer's head says of the connection, and not of the answer.
#[derive(Default)]
struct Hops {
    close: bool,
    keep_alive: bool,
    upgrades: bool,
    protocol: Option<HeaderValue>,
    named: Vec<HeaderName>,
    length: Option<u64>,
    chunked: bool,
}

impl Hops {
    /// Whether the field concerns the connection alone. Notes what tells the body's length.
    fn take(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<bool, &'static str> {
        if *name == CONTENT_LENGTH {
            if self.length.is_some() {
                return Err("the answer has two lengths");
            }
            self.length = Some(length(value).ok_or("the length of the answer is malformed")?);
            return Ok(false);
        }
        if *name == TRANSFER_ENCODING {
            if self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err("the answer is encoded in a way that is not known");
            }
            self.chunked = true;
        } else if *name == CONNECTION {
            self.take_connection(value);
        } else if *name == UPGRADE {
            self.protocol = Some(value.clone());
        } else {
            return Ok(matches!(
                name.as_str(),
                "keep-alive" | "proxy-connection" | "te" | "proxy-authenticate"
            ));
        }
        Ok(true)
    }

    fn take_connection(&mut self, value: &HeaderValue) {
        for token in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrades = true;
            } else if let Ok(name) = HeaderName::from_bytes(token)
                // Without these the answer would mean something else.
                && name != CONTENT_LENGTH
                && name != TRAILER
            {
                self.named.push(name);
            }
        }
    }
}

fn framing(
    headers: &mut HeaderMap,
    hops: &Hops,
    status: StatusCode,
    minor: u8,
    asked: Asked,
) -> Result<Framing, &'static str> {
    if hops.chunked && (hops.length.is_some() || minor == 0) {
        return Err("the length of the answer is ambiguous");
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = hops.protocol.clone().filter(|_| hops.upgrades && asked.upgrade);
        headers.insert(UPGRADE, protocol.ok_or("the protocol was switched, which nobody asked for")?);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.remove(CONTENT_LENGTH);
        return Ok(Framing::Length(0));
    }
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    let bodiless = asked.head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    Ok(match hops.length {
        _ if bodiless => Framing::Length(0),
        Some(length) => Framing::Length(length),
        None if hops.chunked => Framing::Chunked,
        None => Framing::UntilClose,
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const GET: Asked = Asked { head: false, upgrade: false };

    fn read(answer: &str) -> Result<Answer, &'static str> {
        match parse(&Bytes::copy_from_slice(answer.as_bytes()), GET)? {
            Parsed::Final(end, answer) if end > 0 => Ok(answer),
            Parsed::Final(..) | Parsed::Partial => Err("partial"),
            Parsed::Interim(_) => Err("interim"),
        }
    }

    #[test]
    fn the_end_of_an_answer_is_read_in_one_way_only() {
        for (fields, expected) in [
            ("Content-Length: 2", Ok(Framing::Length(2))),
            ("content-length:2 ", Ok(Framing::Length(2))),
            ("Transfer-Encoding: Chunked", Ok(Framing::Chunked)),
            ("X: 1", Ok(Framing::UntilClose)),
            ("Content-Length: 2\r\nContent-Length: 2", Err("the answer has two lengths")),
            ("Content-Length: 2, 2", Err("the length of the answer is malformed")),
            ("Content-Length: +2", Err("the length of the answer is malformed")),
            ("Content-Length: -2", Err("the length of the answer is malformed")),
            ("Content-Length: 0x2", Err("the length of the answer is malformed")),
            ("Content-Length:", Err("the length of the answer is malformed")),
            ("Content-Length: 99999999999999999999", Err("the length of the answer is malformed")),
            ("Content-Length: 2\r\nTransfer-Encoding: chunked", Err("the length of the answer is ambiguous")),
            ("Transfer-Encoding: gzip, chunked", Err("the answer is encoded in a way that is not known")),
            ("Transfer-Encoding: identity", Err("the answer is encoded in a way that is not known")),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                Err("the answer is encoded in a way that is not known"),
            ),
        ] {
            let answer = read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"));
            assert_eq!(answer.map(|answer| answer.framing), expected, "{fields}");
        }
        let old = read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(old.unwrap_err(), "the length of the answer is ambiguous");
    }

    #[test]
    fn malformed_heads_are_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: 1\r\n\r\n",
            "HTTP/1.1 200 OK\nX: 1\n\n",
            "HTTP/1.1 200 OK\r\nX: 1\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno field\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 600 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        ] {
            assert!(!matches!(read(head), Ok(_) | Err("partial" | "interim")), "{head:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(read(&many).unwrap_err(), "the answer has too many fields");
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(read(&long).unwrap_err(), "the head of the answer is too large");
    }

    #[test]
    fn what_concerns_the_connection_stays_on_it() {
        let answer = read(
            "HTTP/1.1 200 Fine\r\nConnection: X-Hop, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nX-Kept: 1\r\n\
             Upgrade: h2c\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n",
        )
        .unwrap();
        let mut names: Vec<&str> = answer.head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["trailer", "x-kept"]);
        assert_eq!(
            answer.head.extensions.get::<ReasonPhrase>().map(|reason| reason.as_ref()),
            Some(&b"Fine"[..])
        );
        for (head, keeps) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            assert_eq!(read(head).unwrap().keeps, keeps, "{head}");
        }
    }

    #[test]
    fn a_request_says_its_length_once() {
        let request =
            Request::post("http://a?q=1").header("content-length", "7").header("connection", "x").body(());
        let (head, ()) = request.unwrap().into_parts();
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        for (sized, expected) in [
            (Sized::Empty, "content-length: 0\r\n"),
            (Sized::Length(9), "content-length: 9\r\n"),
            (Sized::Chunked, "transfer-encoding: chunked\r\n"),
        ] {
            let mut out = Vec::new();
            write(&mut out, &head, sized, address);
            let expected = format!("POST /?q=1 HTTP/1.1\r\n{expected}host: 127.0.0.1:80\r\n\r\n");
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
