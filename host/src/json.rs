//! The rules for JSON that enters the store, whether from a client, a batch or a transformer.
//!
//! # Problem
//!
//! Values are stored as text and read by different parsers: browsers, `jq`, plugins in three languages. Text that two
//! parsers could understand differently must not be stored, and no digit of a number may be lost.
//!
//! # Approach
//!
//! [`compact`] checks a text against RFC 8259 in one pass and removes the white space between tokens; [`check`] only checks. Numbers
//! are checked without converting them: a conversion would round them, or refuse those beyond `f64`. `serde_json` is no help
//! here, since it converts every number that it does not skip, does not check the strings that it skips, and keeps the last
//! of two members with one name.
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
use memchr::memchr2;

use crate::limits::JSON_LEVELS_MAX;

/// Characters of a repeated name that an error shows; the rest is cut.
const NAME_CHARS_MAX: usize = 60;

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
pub fn compact(text: Bytes) -> Result<Bytes, Error> {
    let mut checker = Checker::of(&text, JSON_LEVELS_MAX, true)?;
    checker.whole()?;
    if checker.copied == 0 {
        return Ok(text);
    }
    checker.copy_to(text.len());
    Ok(checker.compact.into())
}

/// Checks a JSON text that is kept as it is, or read by a parser that is less strict. Text around a value may nest deeper than
/// [`JSON_LEVELS_MAX`], by the levels that it adds.
pub fn check(text: &[u8], levels_max: usize) -> Result<(), Error> {
    Checker::of(text, levels_max, false)?.whole()
}

/// A text, checked up to `at`.
struct Checker<'a> {
    text: &'a str,
    at: usize,
    levels_max: usize,
    /// Whether the compact text is wanted.
    compacts: bool,
    /// The part of the text up to `copied`, without white space. Empty until white space is found.
    compact: Vec<u8>,
    copied: usize,
}

impl<'a> Checker<'a> {
    fn of(text: &'a [u8], levels_max: usize, compacts: bool) -> Result<Self, Error> {
        let text = std::str::from_utf8(text)
            .map_err(|error| Error { at: error.valid_up_to(), reason: "invalid UTF-8".to_owned() })?;
        Ok(Self { text, at: 0, levels_max, compacts, compact: Vec::new(), copied: 0 })
    }

    /// Checks the whole text.
    fn whole(&mut self) -> Result<(), Error> {
        self.value(self.levels_max)?;
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wrong("unexpected text after the value")),
        }
    }

    /// Checks one value, in which arrays and objects nest at most `levels` deep.
    fn value(&mut self, levels: usize) -> Result<(), Error> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            Some(b'[' | b'{') if levels == 0 => Err(self.wrong(&format!("more than {} levels", self.levels_max))),
            Some(b'[') => self.elements(b']', "`,` or `]` is expected", |checker| checker.value(levels - 1)),
            Some(b'{') => {
                let mut names = BTreeSet::new();
                self.elements(b'}', "`,` or `}` is expected", |checker| {
                    checker.name(&mut names)?;
                    checker.value(levels - 1)
                })
            }
            Some(_) => Err(self.wrong("a JSON value is expected")),
            None => Err(self.wrong("the text ends early")),
        }
    }

    /// Checks the elements of an array or an object, from its first byte to its last.
    fn elements(
        &mut self,
        end: u8,
        expected: &str,
        mut element: impl FnMut(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.at += 1;
        let mut is_over = self.peek() == Some(end);
        while !is_over {
            element(self)?;
            is_over = match self.peek() {
                Some(b',') => false,
                Some(found) if found == end => true,
                Some(_) => return Err(self.wrong(expected)),
                None => return Err(self.wrong("the text ends early")),
            };
            self.at += usize::from(!is_over);
        }
        self.at += 1;
        Ok(())
    }

    /// Checks the name of a member and the colon after it. `names` has the names before it.
    fn name(&mut self, names: &mut BTreeSet<Cow<'a, str>>) -> Result<(), Error> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a member's name is expected"));
        }
        let at = self.at;
        let name = self.string()?;
        if let Some(name) = names.replace(name) {
            let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
            let rest = if shown.len() < name.len() { "…" } else { "" };
            return Err(Error { at, reason: format!("the member {shown:?}{rest} is there twice") });
        }
        if self.peek() != Some(b':') {
            return Err(self.wrong("`:` is expected"));
        }
        self.at += 1;
        Ok(())
    }

    /// Checks a string and returns its content without escapes.
    fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        let begin = self.at;
        let mut has_escapes = false;
        self.at += 1;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let end = memchr2(b'"', b'\\', rest);
            let plain = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            // No early exit, so that the compiler vectorizes the loop.
            if plain.iter().fold(false, |found, byte| found | is_control(byte)) {
                self.at += plain.iter().position(is_control).unwrap_or_default();
                return Err(self.wrong("a control character in a string"));
            }
            self.at += plain.len();
            match self.byte() {
                Some(b'"') => break,
                Some(_) => {
                    has_escapes = true;
                    self.at += 2;
                }
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
        self.skip(|byte| byte == b'-');
        if !self.skip(|byte| byte == b'0') {
            self.digits()?;
        }
        if self.skip(|byte| byte == b'.') {
            self.digits()?;
        }
        if self.skip(|byte| matches!(byte, b'e' | b'E')) {
            self.skip(|byte| matches!(byte, b'+' | b'-'));
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        if !self.skip(|byte| byte.is_ascii_digit()) {
            return Err(self.wrong("a digit is expected"));
        }
        while self.skip(|byte| byte.is_ascii_digit()) {}
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<(), Error> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(self.wrong("a JSON value is expected"));
        }
        self.at += word.len();
        Ok(())
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let begin = self.at;
        while self.skip(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {}
        if self.compacts && self.at > begin {
            self.copy_to(begin);
            self.copied = self.at;
        }
        self.byte()
    }

    fn copy_to(&mut self, end: usize) {
        self.compact.extend_from_slice(self.text.as_bytes().get(self.copied..end).unwrap_or_default());
    }

    /// Skips the next byte if it is of a kind.
    fn skip(&mut self, is_wanted: impl Fn(u8) -> bool) -> bool {
        let is_next = self.byte().is_some_and(is_wanted);
        self.at += usize::from(is_next);
        is_next
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn wrong(&self, reason: &str) -> Error {
        Error { at: self.at, reason: reason.to_owned() }
    }
}

fn is_control(byte: &u8) -> bool {
    *byte < 0x20
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
        let wrong = r#"{ [1 [1,] [,1] {"a"} {"a":} {"a":1,} {a:1} [1} 01 +1 .5 1. 1e - NaN tru truex 'a' "a "\q" "\ud800"
            "\ude00\ud83d" "\u12" {"a":1,"a":2} {"a":1,"\u0061":2} [{"x":{"a":1,"b":2,"a":3}}] "\"#;
        let spaced = ["", " ", "1 2", "[1 2]", "\"\t\"", "\u{feff}1"];
        for text in wrong.split_whitespace().chain(spaced) {
            assert_eq!(compacted(text).map(drop), check(text.as_bytes(), JSON_LEVELS_MAX), "{text}");
            assert!(check(text.as_bytes(), JSON_LEVELS_MAX).is_err(), "{text}");
        }
        assert!(compact(Bytes::from_static(b"\"\xff\"")).is_err());
        assert!(check(b"\"\xff\"", 1).is_err());
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(compacted(&nested(JSON_LEVELS_MAX)).is_ok());
        assert_eq!(compacted(&nested(JSON_LEVELS_MAX + 1)).unwrap_err().at, JSON_LEVELS_MAX);
        assert!(compacted(&"[".repeat(1_000_000)).is_err());
        assert_eq!(check(b"[{\"a\":[]}]", 3), Ok(()));
        assert_eq!(check(b"[{\"a\":[]}]", 2).unwrap_err().to_string(), "more than 2 levels at byte 6");
    }

    #[test]
    fn an_error_says_where() {
        assert_eq!(compacted("{\"a\": nul}").unwrap_err().to_string(), "a JSON value is expected at byte 6");
        assert_eq!(
            compacted("{\"a\":1, \"a\":2}").unwrap_err().to_string(),
            "the member \"a\" is there twice at byte 8"
        );
        let long = "é".repeat(1_000_000);
        let error = check(format!("{{\"{long}\":1,\"{long}\":2}}").as_bytes(), 1).unwrap_err();
        assert_eq!(error.reason, format!("the member {:?}… is there twice", "é".repeat(NAME_CHARS_MAX)));
    }

    #[test]
    fn a_check_allows_white_space() {
        assert_eq!(check(b" { \"a\" : [ 1 , {} ] }\r\n", 3), Ok(()));
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
            assert_eq!(check(text.as_bytes(), JSON_LEVELS_MAX), ours.clone().map(drop), "{text}");
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
