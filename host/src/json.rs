//! The rules for JSON that enters the store, whether from a client, a batch or a transformer.
//!
//! # Problem
//!
//! Values are stored as text and read by different parsers: browsers, `jq`, plugins in three languages. Text that two
//! parsers could understand differently must not be stored, and no digit of a number may be lost.
//!
//! # Approach
//!
//! [`compact`] checks a text against RFC 8259 in one pass and removes the white space between tokens. It checks numbers
//! without converting them: a conversion would round them, or refuse those beyond `f64`. `serde_json` is no help here,
//! since it converts every number that it does not skip, and does not check the strings that it skips.
//!
//! # Guarantees
//!
//! Accepted text is UTF-8 and well-formed, nests at most [`JSON_LEVELS_MAX`] levels, repeats no member of an object, and
//! contains no lone surrogate. Its bytes stay as they are except for white space between tokens.
//!
//! # Cost
//!
//! One pass, and no copy of text that is compact already. Each object allocates a set of its members' names.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::limits::JSON_LEVELS_MAX;

/// Why and where a text breaks the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {at}")]
pub struct Error {
    /// The offset of the offending byte in the text.
    pub at: usize,
    /// What is wrong there.
    pub reason: String,
}

/// Checks a JSON text and removes the white space between its tokens. Text without any is returned as it is.
///
/// # Errors
///
/// If the text breaks the rules of this module.
pub fn compact(text: Bytes) -> Result<Bytes, Error> {
    let mut checker = Checker::new(&text)?;
    checker.text()?;
    if !checker.has_white_space {
        return Ok(text);
    }
    let (mut in_string, mut escaped) = (false, false);
    let is_content = |byte: &u8| {
        if escaped {
            escaped = false;
        } else if *byte == b'"' {
            in_string = !in_string;
        } else {
            escaped = in_string && *byte == b'\\';
        }
        in_string || !is_white_space(*byte)
    };
    Ok(text.iter().copied().filter(is_content).collect::<Vec<u8>>().into())
}

fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// A text, checked up to `at`.
struct Checker<'a> {
    text: &'a str,
    at: usize,
    has_white_space: bool,
}

/// An array or object that has not ended yet.
enum Open<'a> {
    Array,
    /// The names of its members so far.
    Object(BTreeSet<Cow<'a, str>>),
}

impl<'a> Checker<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Error { at: error.valid_up_to(), reason: "invalid UTF-8".to_owned() })?;
        Ok(Self { text, at: 0, has_white_space: false })
    }

    /// Checks the whole text: one value, and nothing after it.
    fn text(&mut self) -> Result<(), Error> {
        let mut open = Vec::new();
        loop {
            self.value(&mut open)?;
            if open.is_empty() {
                return self.peek().map_or(Ok(()), |_| Err(self.wrong("unexpected text after the value")));
            }
        }
    }

    /// Checks one value, and the ends of arrays and objects after it.
    fn value(&mut self, open: &mut Vec<Open<'a>>) -> Result<(), Error> {
        match self.peek() {
            Some(b'"') => drop(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            Some(begin @ (b'[' | b'{')) => return self.begin(begin, open),
            Some(_) => return Err(self.wrong("a JSON value is expected")),
            None => return Err(self.wrong("the text ends early")),
        }
        self.end_of_value(open)
    }

    fn begin(&mut self, begin: u8, open: &mut Vec<Open<'a>>) -> Result<(), Error> {
        if open.len() == JSON_LEVELS_MAX {
            return Err(self.wrong(&format!("more than {JSON_LEVELS_MAX} levels")));
        }
        self.at += 1;
        let end = if begin == b'[' { b']' } else { b'}' };
        if self.peek() == Some(end) {
            self.at += 1;
            return self.end_of_value(open);
        }
        open.push(if begin == b'[' { Open::Array } else { Open::Object(BTreeSet::new()) });
        self.name(open)
    }

    /// Within an object, checks the name of the next member and the colon after it.
    fn name(&mut self, open: &mut [Open<'a>]) -> Result<(), Error> {
        let Some(Open::Object(names)) = open.last_mut() else { return Ok(()) };
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a member's name is expected"));
        }
        let at = self.at;
        let name = self.string()?;
        if names.contains(&name) {
            return Err(Error { at, reason: format!("the member {name:?} is there twice") });
        }
        names.insert(name);
        if self.peek() != Some(b':') {
            return Err(self.wrong("`:` is expected"));
        }
        self.at += 1;
        Ok(())
    }

    /// Closes the arrays and objects that end after a value, and stops where the next value begins.
    fn end_of_value(&mut self, open: &mut Vec<Open<'a>>) -> Result<(), Error> {
        while let Some(innermost) = open.last() {
            let (end, expected) = match innermost {
                Open::Array => (b']', "`,` or `]` is expected"),
                Open::Object(_) => (b'}', "`,` or `}` is expected"),
            };
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    return self.name(open);
                }
                Some(found) if found == end => {
                    self.at += 1;
                    open.pop();
                }
                Some(_) => return Err(self.wrong(expected)),
                None => return Err(self.wrong("the text ends early")),
            }
        }
        Ok(())
    }

    /// Checks a string and returns its content without escapes.
    fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        let begin = self.at;
        let mut has_escapes = false;
        loop {
            self.at += 1;
            match self.byte() {
                Some(b'"') => break,
                Some(b'\\') => {
                    has_escapes = true;
                    self.at += 1;
                }
                Some(0..=0x1f) => return Err(self.wrong("a control character in a string")),
                Some(_) => {}
                None => return Err(self.wrong("the text ends early")),
            }
        }
        self.at += 1;
        let quoted = self.text.get(begin..self.at).unwrap_or_default();
        if has_escapes {
            let unescaped = serde_json::from_str::<String>(quoted);
            return unescaped.map(Cow::Owned).map_err(|_| Error { at: begin, reason: "an invalid escape".to_owned() });
        }
        Ok(Cow::Borrowed(quoted.trim_matches('"')))
    }

    fn number(&mut self) -> Result<(), Error> {
        self.skip(|byte| byte == b'-', 1);
        match self.byte() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.skip(|byte| byte == b'.', 1) > 0 {
            self.digits()?;
        }
        if self.skip(|byte| matches!(byte, b'e' | b'E'), 1) > 0 {
            self.skip(|byte| matches!(byte, b'+' | b'-'), 1);
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        match self.skip(|byte| byte.is_ascii_digit(), usize::MAX) {
            0 => Err(self.wrong("a digit is expected")),
            _ => Ok(()),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Error> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(self.wrong("a JSON value is expected"));
        }
        self.at += word.len();
        Ok(())
    }

    /// Skips up to `max` bytes of a kind and returns how many there were.
    fn skip(&mut self, is_wanted: impl Fn(u8) -> bool, max: usize) -> usize {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let count = rest.iter().take(max).take_while(|byte| is_wanted(**byte)).count();
        self.at += count;
        count
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.byte() {
            if !is_white_space(byte) {
                return Some(byte);
            }
            self.has_white_space = true;
            self.at += 1;
        }
        None
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn wrong(&self, reason: &str) -> Error {
        Error { at: self.at, reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compacted(text: &str) -> Result<String, Error> {
        compact(Bytes::copy_from_slice(text.as_bytes())).map(|text| String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn compacting_keeps_every_token_as_it_was() {
        let json =
            "{ \"a b\" : [ 1.50 , 1e400,\n 123456789012345678901234567890 ], \"q\\\" x\":\"\\\\\" , \"é\" : null }";
        let expected = r#"{"a b":[1.50,1e400,123456789012345678901234567890],"q\" x":"\\","é":null}"#;
        assert_eq!(compacted(json).unwrap(), expected);
        assert_eq!(
            compacted(" { \"a b\\\" \" : [ 1.00000000000000000001 , true ,\nnull ] } ").unwrap(),
            "{\"a b\\\" \":[1.00000000000000000001,true,null]}"
        );
        for scalar in ["0", "-0", "-1.0e-7", "true", "false", "null", "\"\\ud83d\\ude00\"", "[]", "{}", "[[],{}]"] {
            assert_eq!(compacted(scalar).unwrap(), scalar);
        }
    }

    #[test]
    fn text_that_is_compact_is_not_copied() {
        let text = Bytes::from_static(b"{\"a\":[1,\"b c\"]}");
        assert_eq!(compact(text.clone()).unwrap().as_ptr(), text.as_ptr());
    }

    #[test]
    fn text_that_two_parsers_could_understand_differently_is_refused() {
        let wrong = [
            "",
            " ",
            "{",
            "[1",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "1 2",
            "[1 2]",
            "[1}",
            "01",
            "+1",
            ".5",
            "1.",
            "1e",
            "-",
            "NaN",
            "tru",
            "truex",
            "'a'",
            "\"a",
            "\"\\q\"",
            "\"\\ud800\"",
            "\"\\ude00\\ud83d\"",
            "\"\\u12\"",
            "\"\t\"",
            "{\"a\":1,\"a\":2}",
            "{\"a\":1,\"\\u0061\":2}",
            "[{\"x\":{\"a\":1,\"b\":2,\"a\":3}}]",
            "\u{feff}1",
            "\"\\",
        ];
        for text in wrong {
            assert!(compacted(text).is_err(), "{text}");
        }
        assert!(compact(Bytes::from_static(b"\"\xff\"")).is_err());
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(compacted(&nested(JSON_LEVELS_MAX)).is_ok());
        assert_eq!(compacted(&nested(JSON_LEVELS_MAX + 1)).unwrap_err().at, JSON_LEVELS_MAX);
        assert!(compacted(&"[".repeat(1_000_000)).is_err());
    }

    #[test]
    fn an_error_says_where() {
        assert_eq!(compacted("{\"a\": nul}").unwrap_err().to_string(), "a JSON value is expected at byte 6");
        assert_eq!(
            compacted("{\"a\":1, \"a\":2}").unwrap_err().to_string(),
            "the member \"a\" is there twice at byte 8"
        );
    }

    /// The two differ in two cases: a repeated member, which only this rule refuses, and a number beyond `f64`, which only
    /// `serde_json` refuses.
    #[test]
    fn it_agrees_with_serde_json_on_random_texts() {
        let mut random = fastrand::Rng::with_seed(1);
        let pieces =
            ["{", "}", "[", "]", ",", ":", "\"a\"", "\"b\\n\"", "1", "-2.5e3", "true", "null", " ", "\"", "\\", "0"];
        let mut accepted = 0;
        for _ in 0..200_000 {
            let text: String = (0..random.usize(1..9)).map(|_| pieces[random.usize(..pieces.len())]).collect();
            let (ours, theirs) = (compacted(&text), serde_json::from_str::<serde_json::Value>(&text));
            match (&ours, &theirs) {
                (Ok(compact), Ok(value)) => {
                    accepted += 1;
                    assert_eq!(serde_json::from_str::<serde_json::Value>(compact).unwrap(), *value);
                }
                (Err(error), Ok(_)) => assert!(error.reason.contains("twice"), "{text}: {error}"),
                (Ok(_), Err(error)) => assert!(error.to_string().contains("out of range"), "{text}: {error}"),
                (Err(_), Err(_)) => {}
            }
        }
        assert!(accepted > 1_000, "{accepted}");
    }
}
