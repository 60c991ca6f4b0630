//! Dictionaries of structured fields (RFC 9651, section 3.2), as far as cache directives need them.

/// A member: its key, its value, and whether parameters follow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member<'a> {
    pub(super) key: &'a str,
    pub(super) value: Value,
    pub(super) has_parameters: bool,
}

/// A value; of what is neither flag nor integer only that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Flag(bool),
    Integer(i64),
    Other,
}

/// All members in their order; none where one of them is malformed.
pub(super) fn parse(text: &str) -> Option<Vec<Member<'_>>> {
    let mut rest = text.trim_matches(' ');
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (key, value) = pair(&mut rest)?;
        let mut has_parameters = false;
        while let Some(parameter) = rest.strip_prefix(';') {
            rest = parameter.trim_start_matches(' ');
            pair(&mut rest)?;
            has_parameters = true;
        }
        members.push(Member { key, value, has_parameters });
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            break;
        }
        rest = rest.strip_prefix(',')?.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return None;
        }
    }
    Some(members)
}

fn pair<'a>(rest: &mut &'a str) -> Option<(&'a str, Value)> {
    let key = take_while(rest, |byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)
    });
    if !key.starts_with(|first: char| first.is_ascii_lowercase() || first == '*') {
        return None;
    }
    let Some(value) = rest.strip_prefix('=') else { return Some((key, Value::Flag(true))) };
    *rest = value;
    Some((key, item(rest)?))
}

fn item(rest: &mut &str) -> Option<Value> {
    match rest.bytes().next()? {
        b'?' => {
            let flag = take(rest, 2)?;
            matches!(flag, "?0" | "?1").then_some(Value::Flag(flag == "?1"))
        }
        b'"' => string(rest),
        b'-' | b'0'..=b'9' => {
            let number = take_while(rest, |byte| byte.is_ascii_digit() || byte == b'-' || byte == b'.');
            if number.contains('.') {
                return number.parse::<f64>().ok().map(|_| Value::Other);
            }
            // Fifteen digits are all that an integer may have.
            let digits = number.trim_start_matches('-').len();
            (digits <= 15).then(|| number.parse().ok().map(Value::Integer))?
        }
        b'*' | b'a'..=b'z' | b'A'..=b'Z' => {
            take_while(rest, |byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
            Some(Value::Other)
        }
        _ => None,
    }
}

fn string(rest: &mut &str) -> Option<Value> {
    let mut escaped = false;
    let end = rest.bytes().skip(1).position(|byte| {
        let was_escaped = escaped;
        escaped = !was_escaped && byte == b'\\';
        byte == b'"' && !was_escaped
    })?;
    take(rest, end + 2).map(|_| Value::Other)
}

fn take<'a>(rest: &mut &'a str, length: usize) -> Option<&'a str> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn take_while<'a>(rest: &mut &'a str, wanted: impl Fn(u8) -> bool) -> &'a str {
    let end = rest.bytes().position(|byte| !wanted(byte)).unwrap_or(rest.len());
    // All that is wanted is ASCII, so that this is a boundary.
    take(rest, end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_with_their_values() {
        let read = parse("  a, max-age=60 ,b=?0;p;q=\"x\\\";\",c=\"y, z\"  , *d=tok/en,e=-1, f=1.5").unwrap();
        let read: Vec<_> =
            read.iter().map(|member| (member.key, member.value, member.has_parameters)).collect();
        assert_eq!(
            read,
            [
                ("a", Value::Flag(true), false),
                ("max-age", Value::Integer(60), false),
                ("b", Value::Flag(false), true),
                ("c", Value::Other, false),
                ("*d", Value::Other, false),
                ("e", Value::Integer(-1), false),
                ("f", Value::Other, false),
            ]
        );
    }

    #[test]
    fn what_is_malformed_is_nothing_at_all() {
        for text in [
            "a,",
            ",a",
            "A",
            "a=",
            "a= 1",
            "a =1",
            "a=1 2",
            "a=\"x",
            "a=?2",
            "a=1234567890123456",
            "a=é",
            "a=1-2",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(" "), Some(Vec::new()));
    }
}
