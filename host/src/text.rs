//! Text of strangers, made safe for terminals and text logs.
//!
//! Keys, values, messages of plugins and answers of nodes may have any characters. Some of these are orders to a terminal: they
//! clear it, rename its window, or type in place of its user. Others begin a line that looks like one of ours, or show a text in
//! another order than it has. Everything that reaches a terminal or a text log goes through a function of this file, which
//! writes such a character as its escape, for example `\u{1b}`. A text without them is borrowed.
//!
//! The escape is for people to see. It is not meant to be read back, so a backslash stays as it is.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text on one line, whatever it has.
pub fn safe(text: &str) -> Cow<'_, str> {
    escape(text, |_| false, |out, char| out.extend(char.escape_default()))
}

/// The same for a text that has lines of its own: line ends and tabs stay. Whoever puts it together makes its parts
/// [`safe`], so that none of them can begin a line.
pub fn safe_lines(text: &str) -> Cow<'_, str> {
    escape(text, is_layout, |out, char| out.extend(char.escape_default()))
}

/// The same for JSON, which stays the same JSON: such a character can only be in a string, where it is escaped as JSON does.
pub fn safe_json(text: &str) -> Cow<'_, str> {
    escape(text, is_layout, |out, char| {
        // Each of them has four digits at most. Writing to a string does not fail.
        let _ = write!(out, "\\u{:04x}", u32::from(char));
    })
}

fn escape<'a>(text: &'a str, is_kept: fn(char) -> bool, write: fn(&mut String, char)) -> Cow<'a, str> {
    let is_escaped = |char: char| is_unsafe(char) && !is_kept(char);
    let Some(first) = text.find(is_escaped) else { return Cow::Borrowed(text) };
    let (clean, rest) = text.split_at(first);
    let mut escaped = clean.to_owned();
    for char in rest.chars() {
        if is_escaped(char) { write(&mut escaped, char) } else { escaped.push(char) }
    }
    Cow::Owned(escaped)
}

/// Control characters (C0, DEL and C1), the line ends of Unicode, and what turns the direction of the text around it.
fn is_unsafe(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn is_layout(char: char) -> bool {
    matches!(char, '\n' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        for (text, expected) in [
            ("", ""),
            ("plain \\u{1b} é 漢字 👍🏽 عربي \u{200f}", "plain \\u{1b} é 漢字 👍🏽 عربي \u{200f}"),
            ("x/\u{1b}[2J\nfake", "x/\\u{1b}[2J\\nfake"),
            ("\0\u{7}\u{8}\t\r\u{7f}", "\\u{0}\\u{7}\\u{8}\\t\\r\\u{7f}"),
            ("\u{80}\u{9b}2J\u{9d}0;title\u{9c}", "\\u{80}\\u{9b}2J\\u{9d}0;title\\u{9c}"),
            ("a\u{2028}b\u{2029}c\u{85}d", "a\\u{2028}b\\u{2029}c\\u{85}d"),
            ("\u{202a}\u{202e}\u{2066}\u{2069}", "\\u{202a}\\u{202e}\\u{2066}\\u{2069}"),
            ("\u{2027}\u{202f}\u{2065}\u{206a}\u{a0}", "\u{2027}\u{202f}\u{2065}\u{206a}\u{a0}"),
        ] {
            assert_eq!(safe(text), expected, "{text:?}");
            // Once is enough, and twice is no more.
            assert_eq!(safe(expected), expected);
        }
    }

    #[test]
    fn every_control_character_is_escaped() {
        let all: String = ('\0'..='\u{9f}').filter(|char| char.is_control()).collect();
        assert_eq!(all.chars().count(), 65);
        assert!(!safe(&all).contains(char::is_control));
        assert_eq!(safe_lines(&all).matches(char::is_control).collect::<Vec<_>>(), ["\t", "\n"]);
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(safe_lines("a\n\tb\r\n\u{1b}c"), "a\n\tb\\r\n\\u{1b}c");
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"k\u{9b}": "\u{7f}\u{202e}\\\u{85} é \u{1b}\n"});
        let text = value.to_string();
        let safe = safe_json(&text);
        assert!(!safe.contains(is_unsafe), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        assert_eq!(safe, r#"{"k\u009b":"\u007f\u202e\\\u0085 é \u001b\n"}"#);
    }

    #[test]
    fn a_text_without_them_is_not_copied() {
        for safe in [safe, safe_lines, safe_json] {
            assert!(matches!(safe("users/ann é"), Cow::Borrowed(_)));
        }
    }
}
