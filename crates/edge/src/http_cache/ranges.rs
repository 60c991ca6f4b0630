//! Parts of a kept whole (RFC 9110, section 14).

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

// More parts than that cost more than the whole, and nobody needs them.
const MAX_PARTS: usize = 16;

/// What a request gets of a whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// All of it: no part was asked for, or not in a way that can be followed.
    Whole,
    Some(Vec<Range<usize>>),
    /// No part that was asked for exists.
    None,
}

/// What the request asks for.
pub(super) fn asked(request: &HeaderMap, length: usize) -> Parts {
    let mut lines = request.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Parts::Whole };
    let Some(specs) = line.to_str().ok().and_then(|line| line.trim().strip_prefix("bytes=")) else {
        return Parts::Whole;
    };
    let mut parts = Vec::new();
    for spec in specs.split(',') {
        match part(spec.trim(), length) {
            Err(Malformed) => return Parts::Whole,
            Ok(Some(part)) => parts.push(part),
            Ok(None) => {}
        }
    }
    let bytes: usize = parts.iter().map(Range::len).sum();
    match parts.len() {
        0 => Parts::None,
        1 => Parts::Some(parts),
        2..=MAX_PARTS if bytes <= length => Parts::Some(parts),
        // Too many, or overlapping: a way to make a server work, rather than to get anything.
        _ => Parts::Whole,
    }
}

struct Malformed;

fn part(spec: &str, length: usize) -> Result<Option<Range<usize>>, Malformed> {
    let (first, last) = spec.split_once('-').ok_or(Malformed)?;
    let (first, last) = (number(first)?, number(last)?);
    let part = match (first, last) {
        (None, None) => return Err(Malformed),
        (None, Some(suffix)) => length.saturating_sub(suffix)..length,
        (Some(first), None) => first..length,
        (Some(first), Some(last)) if last < first => return Err(Malformed),
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
    };
    Ok((part.start < part.end).then_some(part))
}

fn number(text: &str) -> Result<Option<usize>, Malformed> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed);
    }
    // A number too large for any body is beyond the end of this one.
    Ok((!text.is_empty()).then(|| text.parse().unwrap_or(usize::MAX)))
}

/// Makes the head of a whole that of its parts, and returns their bytes.
pub(super) fn cut(
    parts: &Parts,
    status: &mut StatusCode,
    headers: &mut HeaderMap,
    whole: &Bytes,
    boundary: u64,
) -> Bytes {
    let bytes = match parts {
        Parts::Whole => return whole.clone(),
        Parts::None => {
            *status = StatusCode::RANGE_NOT_SATISFIABLE;
            insert(headers, &format!("bytes */{}", whole.len()));
            headers.remove(CONTENT_TYPE);
            Bytes::new()
        }
        Parts::Some(parts) => {
            *status = StatusCode::PARTIAL_CONTENT;
            match &parts[..] {
                [part] => {
                    insert(headers, &content_range(part, whole.len()));
                    whole.slice(part.clone())
                }
                parts => several(parts, headers, whole, boundary),
            }
        }
    };
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    bytes
}

fn several(parts: &[Range<usize>], headers: &mut HeaderMap, whole: &Bytes, boundary: u64) -> Bytes {
    let mut bytes = BytesMut::new();
    let of_type = headers.get(CONTENT_TYPE).cloned();
    for part in parts {
        bytes.extend_from_slice(format!("\r\n--{boundary:016x}\r\n").as_bytes());
        if let Some(of_type) = &of_type {
            bytes.extend_from_slice(b"Content-Type: ");
            bytes.extend_from_slice(of_type.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let range = content_range(part, whole.len());
        bytes.extend_from_slice(format!("Content-Range: {range}\r\n\r\n").as_bytes());
        bytes.extend_from_slice(&whole[part.clone()]);
    }
    bytes.extend_from_slice(format!("\r\n--{boundary:016x}--\r\n").as_bytes());
    if let Ok(value) = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary:016x}")) {
        headers.insert(CONTENT_TYPE, value);
    }
    bytes.freeze()
}

fn content_range(part: &Range<usize>, length: usize) -> String {
    format!("bytes {}-{}/{length}", part.start, part.end - 1)
}

fn insert(headers: &mut HeaderMap, range: &str) {
    if let Ok(value) = HeaderValue::from_str(range) {
        headers.insert(CONTENT_RANGE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_ten(range: &str) -> Parts {
        asked(&HeaderMap::from_iter([(RANGE, HeaderValue::from_str(range).unwrap())]), 10)
    }

    #[test]
    fn ranges_are_read() {
        for (range, expected) in [
            ("bytes=0-1", vec![0..2]),
            ("bytes=1-", vec![1..10]),
            ("bytes=-3", vec![7..10]),
            ("bytes=-99", vec![0..10]),
            ("bytes=5-99999999999999999999999", vec![5..10]),
            ("bytes=0-0, 9-9", vec![0..1, 9..10]),
            ("bytes=0-0,20-30", vec![0..1]),
        ] {
            assert_eq!(of_ten(range), Parts::Some(expected), "{range}");
        }
        for range in ["bytes=10-", "bytes=-0", "bytes=99-100"] {
            assert_eq!(of_ten(range), Parts::None, "{range}");
        }
        let many = format!("bytes={}", ["0-0"; 17].join(","));
        for range in [
            "",
            "bytes=",
            "bytes=0-1,",
            "lines=0-1",
            "bytes=1",
            "bytes=2-1",
            "bytes=a-b",
            "bytes=-",
            "bytes=0-8,0-8",
            &many,
        ] {
            assert_eq!(of_ten(range), Parts::Whole, "{range}");
        }
    }

    #[test]
    fn several_parts_come_in_one_body() {
        let (mut status, mut headers) = (StatusCode::OK, HeaderMap::new());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let whole = Bytes::from_static(b"0123456789");
        let body = cut(&of_ten("bytes=0-1,-1"), &mut status, &mut headers, &whole, 0xabc);
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(headers[CONTENT_TYPE], "multipart/byteranges; boundary=0000000000000abc");
        assert_eq!(headers[CONTENT_LENGTH], body.len().to_string());
        assert_eq!(
            body,
            "\r\n--0000000000000abc\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
             \r\n--0000000000000abc\r\nContent-Type: text/plain\r\nContent-Range: bytes 9-9/10\r\n\r\n9\
             \r\n--0000000000000abc--\r\n"
        );
    }
}
