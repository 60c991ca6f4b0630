//! `traceparent`, passed on or begun ([W3C Trace Context](https://www.w3.org/TR/trace-context/)).

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a request belongs to: 16 bytes as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceId([u8; 32]);

impl TraceId {
    pub(crate) fn as_str(&self) -> &str {
        // Checked when it was made.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Leaves a valid `traceparent` as it is, as the proxy makes no span of its own that could stand between. Else begins a
/// trace, whose answerer is free to record it, and drops what `tracestate` says of another.
pub(crate) fn follow_or_begin(headers: &mut HeaderMap) -> TraceId {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    if let (Some(value), None) = (values.next(), values.next())
        && let Some(trace) = trace_of(value.as_bytes())
    {
        return trace;
    }
    headers.remove(&TRACESTATE);
    let (trace, parent) = (hex::<32>(nonzero()), hex::<16>(nonzero()));
    let mut value = *b"00-0123456789abcdef0123456789abcdef-0123456789abcdef-01";
    value[3..35].copy_from_slice(&trace);
    value[36..52].copy_from_slice(&parent);
    // Digits and dashes make a value.
    if let Ok(value) = HeaderValue::from_bytes(&value) {
        headers.insert(TRACEPARENT, value);
    }
    TraceId(trace)
}

/// The trace that a `traceparent` names, if it is valid. One of a later version may say more than we know.
fn trace_of(value: &[u8]) -> Option<TraceId> {
    let (known, rest) = value.split_at_checked(55)?;
    let [version @ .., b'-'] = &known[..3] else { return None };
    let (trace, parent, flags) = (&known[3..35], &known[36..52], &known[53..55]);
    let digits = |digits: &[u8]| digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let valid = [version, trace, parent, flags].into_iter().all(digits)
        && known[35] == b'-'
        && known[52] == b'-'
        && version != b"ff"
        && (rest.is_empty() || (version != b"00" && rest[0] == b'-'))
        && trace.iter().any(|digit| *digit != b'0')
        && parent.iter().any(|digit| *digit != b'0');
    if valid { trace.try_into().ok().map(TraceId) } else { None }
}

fn nonzero() -> u128 {
    loop {
        let number: u128 = rand::random();
        // Either of them may be all that is used.
        if number as u64 != 0 {
            return number;
        }
    }
}

/// The last so many digits.
fn hex<const DIGITS: usize>(mut number: u128) -> [u8; DIGITS] {
    let mut digits = [0; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn followed(values: &[&str]) -> (String, HeaderMap) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        (follow_or_begin(&mut headers).as_str().to_owned(), headers)
    }

    #[test]
    fn a_valid_trace_is_passed_on_unchanged() {
        let later = format!("cc-{}-what-the-future-brings", &VALID[3..]);
        for value in [VALID, &VALID.replace("-01", "-00"), &VALID.replacen("00", "cc", 1), &later] {
            let (trace, headers) = followed(&[value]);
            assert_eq!(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!(headers[TRACEPARENT], value);
            assert_eq!(headers[TRACESTATE], "vendor=1");
        }
    }

    #[test]
    fn what_is_absent_or_invalid_is_replaced_and_its_state_dropped() {
        let invalid = [
            VALID.to_uppercase(),
            VALID.replacen("00", "ff", 1),
            VALID.replacen("00", "0g", 1),
            VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
            VALID.replace('-', "_"),
            VALID[..54].to_owned(),
            format!("{VALID}-more"),
            format!("cc{}.", &VALID[2..]),
            String::new(),
        ];
        let lists = invalid.iter().map(|value| vec![value.as_str()]).chain([vec![], vec![VALID, VALID]]);
        let mut traces = std::collections::HashSet::new();
        for values in lists {
            let (trace, headers) = followed(&values);
            let begun: Vec<_> = headers.get_all(TRACEPARENT).iter().collect();
            assert_eq!(begun.len(), 1, "{values:?}");
            assert_eq!(trace_of(begun[0].as_bytes()).unwrap().as_str(), trace, "{values:?}");
            assert!(!headers.contains_key(TRACESTATE), "{values:?}");
            assert!(traces.insert(trace), "each is another");
        }
    }
}
