//! Files of environment variables, as many tools write them.

use std::path::Path;

use crate::Error;

/// Reads a file of `NAME=value` lines.
///
/// Empty lines and lines that begin with `#` are skipped, `export` before a name is ignored. A bare value ends at
/// ` #` or at the line's end and is trimmed; one in single quotes is taken as it is; in double quotes `\n`, `\r`,
/// `\t`, `\"`, `\$` and `\\` are escapes. Quoted values may span lines. Nothing is expanded.
pub(super) fn read(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::EnvFile { path: path.to_owned(), source })?;
    parse(&text).map_err(|(line, problem)| Error::EnvFileLine { path: path.to_owned(), line, problem })
}

type Problem = (usize, &'static str);

fn parse(text: &str) -> Result<Vec<(String, String)>, Problem> {
    let whole = text.strip_prefix('\u{feff}').unwrap_or(text);
    let line_of = |rest: &str| 1 + whole[..whole.len() - rest.len()].matches('\n').count();
    let mut variables = Vec::new();
    let mut rest = whole;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(variables);
        }
        if rest.starts_with('#') {
            rest = after_line(rest);
            continue;
        }
        let line = line_of(rest);
        let (name, value) = rest
            .split_once('=')
            .filter(|(name, _)| !name.contains('\n'))
            .ok_or((line, "no `=` after the name"))?;
        let name = name.trim_end();
        let name = name.strip_prefix("export ").unwrap_or(name).trim();
        if !is_name(name) {
            return Err((line, "a name is made of letters, digits and _, and does not begin with a digit"));
        }
        let (value, after) = parse_value(value).map_err(|problem| (line, problem))?;
        if value.contains('\0') {
            return Err((line, "a value cannot hold a NUL"));
        }
        variables.push((name.to_owned(), value));
        rest = after;
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn after_line(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, after)| after)
}

/// The value that begins here, and what follows its line.
fn parse_value(text: &str) -> Result<(String, &str), &'static str> {
    let text = text.trim_start_matches([' ', '\t']);
    let (value, after) = if let Some(quoted) = text.strip_prefix('\'') {
        let (value, after) = quoted.split_once('\'').ok_or("the single quote is never closed")?;
        (value.to_owned(), after)
    } else if let Some(quoted) = text.strip_prefix('"') {
        unescape(quoted)?
    } else {
        let line = text.lines().next().unwrap_or("");
        let comment = line.match_indices('#').map(|(at, _)| at);
        let end = comment.into_iter().find(|at| line[..*at].ends_with([' ', '\t']) || *at == 0);
        return Ok((line[..end.unwrap_or(line.len())].trim_end().to_owned(), after_line(text)));
    };
    let trailing = after.lines().next().unwrap_or("").trim_start();
    if !trailing.is_empty() && !trailing.starts_with('#') {
        return Err("something follows the closing quote");
    }
    Ok((value, after_line(after)))
}

/// The text up to the closing double quote, and what follows it.
fn unescape(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, escaped @ ('"' | '\\' | '$' | '`'))) => value.push(escaped),
                Some((_, other)) => value.extend(['\\', other]),
                None => break,
            },
            other => value.push(other),
        }
    }
    Err("the double quote is never closed")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let parsed = parse(text).unwrap();
        let parsed: Vec<_> = parsed.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(parsed, expected, "{text:?}");
    }

    #[test]
    fn assignments_are_read_as_they_are_commonly_written() {
        check("A=1\n\n# note\n  B = two words \nexport C=3", &[("A", "1"), ("B", "two words"), ("C", "3")]);
        check("A=\nB=x", &[("A", ""), ("B", "x")]);
        check("A=1 # note\nB=a#b\nC=#", &[("A", "1"), ("B", "a#b"), ("C", "")]);
        check("\u{feff}A=1\r\nB=2\r\n", &[("A", "1"), ("B", "2")]);
        check("U=postgres://u:p@h/d?x=y", &[("U", "postgres://u:p@h/d?x=y")]);
        check("export_path=1", &[("export_path", "1")]);
    }

    #[test]
    fn quotes_keep_what_is_in_them() {
        check(r#"A=" a # b " # note"#, &[("A", " a # b ")]);
        check(r#"A="line\nnext \"x\" \$B \\ \d""#, &[("A", "line\nnext \"x\" $B \\ \\d")]);
        check("A='raw \\n $B'\nB=1", &[("A", "raw \\n $B"), ("B", "1")]);
        check("A='two\nlines'\nB=1", &[("A", "two\nlines"), ("B", "1")]);
    }

    #[test]
    fn a_problem_names_its_line_and_no_value() {
        assert_eq!(parse("A=1\n\nB\nC=2").unwrap_err(), (3, "no `=` after the name"));
        assert_eq!(parse("A='x\ny'\nB=\"s3cret\n").unwrap_err(), (3, "the double quote is never closed"));
        assert_eq!(parse("A='x").unwrap_err(), (1, "the single quote is never closed"));
        assert_eq!(parse("A='x' y").unwrap_err(), (1, "something follows the closing quote"));
        assert_eq!(parse("1A=x").unwrap_err().0, 1);
        assert_eq!(parse("\n=x").unwrap_err().0, 2);
        assert_eq!(parse("A=x\0").unwrap_err().0, 1);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_quoted_comes_back(value in "[^'\0]*") {
            let variables = parse(&format!("A='{value}'\nB=1")).unwrap();
            prop_assert_eq!(&variables, &[("A".to_owned(), value), ("B".to_owned(), "1".to_owned())]);
        }
    }
}
