//! HTTP/1.1 read as strictly as can be, to judge what a proxy sends: each message can be read in one way only, or is
//! called a violation. It shares no code with the proxy.

/// A message with its body whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The request or status line.
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// Bytes that it took.
    pub(crate) length: usize,
}

/// What bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Whole(Message),
    /// More must come; the text says what is there.
    Incomplete,
    Violation(String),
}

type Outcome<T> = Result<T, Read>;

fn violation<T>(what: &str) -> Outcome<T> {
    Err(Read::Violation(what.to_owned()))
}

pub(crate) fn request(bytes: &[u8]) -> Read {
    message(bytes, |line, headers| {
        let words: Vec<&str> = line.split(' ').collect();
        let [method, target, "HTTP/1.1"] = words[..] else { return violation("request line") };
        if !is_token(method) || target.is_empty() || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return violation("method or target");
        }
        let hosts = values(headers, "host");
        if hosts.len() != 1 || hosts[0].iter().any(|byte| !byte.is_ascii_graphic() || b",@/".contains(byte)) {
            return violation("not one host");
        }
        Ok(length(headers)?.unwrap_or(Length::Exactly(0)))
    })
}

/// An answer to a GET; `ended` says whether the connection has ended.
pub(crate) fn answer(bytes: &[u8], ended: bool) -> Read {
    message(bytes, |line, headers| {
        let Some(rest) = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 ")) else {
            return violation("status line");
        };
        let status = rest.split(' ').next().unwrap_or_default();
        if status.len() != 3 || !status.bytes().all(|byte| byte.is_ascii_digit()) {
            return violation("status");
        }
        if status.starts_with('1') || status == "204" || status == "304" {
            return Ok(Length::Exactly(0));
        }
        match length(headers)? {
            Some(length) => Ok(length),
            None if ended => Ok(Length::Rest),
            None => Err(Read::Incomplete),
        }
    })
}

enum Length {
    Exactly(usize),
    Chunked,
    Rest,
}

fn message(bytes: &[u8], length: impl Fn(&str, &[(String, Vec<u8>)]) -> Outcome<Length>) -> Read {
    let read = || -> Outcome<Message> {
        let mut rest = bytes;
        let line = String::from_utf8_lossy(take_line(&mut rest)?).into_owned();
        let headers = fields(&mut rest)?;
        let body = match length(&line, &headers)? {
            Length::Exactly(length) => take(&mut rest, length)?.to_vec(),
            Length::Chunked => chunks(&mut rest)?,
            Length::Rest => std::mem::take(&mut rest).to_vec(),
        };
        Ok(Message { line, headers, body, length: bytes.len() - rest.len() })
    };
    read().map_or_else(|other| other, Read::Whole)
}

fn fields(rest: &mut &[u8]) -> Outcome<Vec<(String, Vec<u8>)>> {
    let mut fields = Vec::new();
    loop {
        let line = take_line(rest)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return violation("no colon") };
        let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
        if !is_token(&name) {
            return violation("field name");
        }
        fields.push((name, line[colon + 1..].trim_ascii().to_vec()));
    }
}

fn length(headers: &[(String, Vec<u8>)]) -> Outcome<Option<Length>> {
    let (lengths, encodings) = (values(headers, "content-length"), values(headers, "transfer-encoding"));
    match (&lengths[..], &encodings[..]) {
        ([], []) => Ok(None),
        ([length], []) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            let length = std::str::from_utf8(length).unwrap_or_default().parse();
            length.map(|length| Some(Length::Exactly(length))).or_else(|_| violation("length"))
        }
        ([], [b"chunked"]) => Ok(Some(Length::Chunked)),
        _ => violation("more than one length"),
    }
}

fn chunks(rest: &mut &[u8]) -> Outcome<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = String::from_utf8_lossy(take_line(rest)?).into_owned();
        if size.is_empty() || size.len() > 8 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return violation("chunk size");
        }
        let size = usize::from_str_radix(&size, 16).or_else(|_| violation("chunk size"))?;
        if size == 0 {
            let trailers = fields(rest)?;
            let framing = ["content-length", "transfer-encoding", "host"];
            return match trailers.iter().any(|(name, _)| framing.contains(&name.as_str())) {
                true => violation("trailer"),
                false => Ok(body),
            };
        }
        body.extend_from_slice(take(rest, size)?);
        if take(rest, 2)? != b"\r\n" {
            return violation("chunk's end");
        }
    }
}

fn take<'b>(rest: &mut &'b [u8], length: usize) -> Outcome<&'b [u8]> {
    let (taken, left) = rest.split_at_checked(length).ok_or(Read::Incomplete)?;
    *rest = left;
    Ok(taken)
}

/// A line without its end, which is CR LF; no other control characters but tabs.
fn take_line<'b>(rest: &mut &'b [u8]) -> Outcome<&'b [u8]> {
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or(Read::Incomplete)?;
    let line = take(rest, end + 1)?;
    let Some(line) = line.strip_suffix(b"\r\n") else { return violation("bare LF") };
    match line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        true => violation("control character"),
        false => Ok(line),
    }
}

fn values<'h>(headers: &'h [(String, Vec<u8>)], name: &str) -> Vec<&'h [u8]> {
    headers.iter().filter(|(known, _)| known == name).map(|(_, value)| &value[..]).collect()
}

fn is_token(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token)
}
