//! A transformer that masks data before it is stored: fields named by pointers, and matches of patterns. `README.md`
//! describes its configuration.
//!
//! Values that it cannot search are refused.

use brink_guest::fields::{Edit, Fields};
use brink_guest::{Invalid, Rejection, Replacement, Transformer, Write};
use regex::{Captures, Regex, RegexBuilder};
use serde::Deserialize;

/// Maximum number of rules in a configuration.
const RULES_MAX: usize = 100;

/// Maximum size of a compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

/// A text that patterns are run on when a hook is created: prose with data that is often masked.
const REHEARSAL: &str = concat!(
    "The quick brown fox jumps over the lazy dog. SPHINX OF BLACK QUARTZ, JUDGE MY VOW! 0123456789 \n\t\r",
    " !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ Ann.B-C+d_e@example.co.uk https://www.example.org/a/b?c=d&e=f#g ",
    "+41 (0)31 555-12-34, 2026-01-31T23:59:59.999Z, 192.168.255.1, fe80::1, 4111 1111 1111 1111 4111-1111-1111-1111 ",
    "4111111111111111 6011000990139424 12,345.67 CH9300762011623852957 123-45-6789 a1b2c3d4e5f60718 Zürich naïve ",
    "Please write to the.quick.brown.fox@jumps-over.the-lazy.dog or waltz-bad_nymph+for@quick-jigs-vex.org; they answer ",
    "(mostly) within a day: how vexingly quick daft zebras jump, and how five quacking zephyrs jolt my wax bed.",
);

/// The configuration of a hook.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The rules, applied in this order.
    pub rules: Vec<Rule>,
    /// What to do with values that are neither JSON nor text.
    #[serde(default)]
    pub other_types: OtherTypes,
}

/// What to mask, where, and how.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The fields: a JSON pointer (RFC 6901) in which `*` stands for every element or member, and `**` at the end for
    /// everything below. The default is the whole value, which needs a pattern.
    pub at: Option<String>,
    /// A regular expression: its matches are masked in every string and number at these places and below. Without one, the
    /// whole field is masked.
    pub pattern: Option<String>,
    /// The replacement.
    #[serde(default = "default_mask")]
    pub mask: String,
    /// Characters at the end that stay readable, if the text has at least twice as many.
    #[serde(default)]
    pub keep_last: usize,
}

/// What to do with values that are neither JSON nor text.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherTypes {
    /// Refuse them, since nothing can be masked in them.
    #[default]
    Refuse,
    /// Store them as they are.
    Pass,
}

/// The plugin.
#[derive(Debug)]
pub struct Redact {
    masks: Vec<Mask>,
    /// The places of each mask, by its position in `masks`.
    places: Fields<usize>,
    other_types: OtherTypes,
}

#[derive(Debug)]
struct Mask {
    pattern: Option<Regex>,
    mask: String,
    keep_last: usize,
}

impl Transformer for Redact {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, Invalid> {
        if config.rules.is_empty() || config.rules.len() > RULES_MAX {
            return Err(Invalid::new("/rules", format!("must have 1 to {RULES_MAX} rules")));
        }
        let mut places = Fields::default();
        let mut masks = Vec::new();
        for (index, rule) in config.rules.into_iter().enumerate() {
            let invalid = |Invalid { path, message }| Invalid::new(format!("/rules/{index}{path}"), message);
            rule.place(index, &mut places).map_err(invalid)?;
            masks.push(Mask::new(rule).map_err(invalid)?);
        }
        Ok(Self { masks, places, other_types: config.other_types })
    }

    fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection> {
        let mut replacements = Vec::new();
        for write in writes.iter().filter(|write| !write.is_deletion()) {
            let redacted = self.redact(write).map_err(|why| write.reject(why.code, why.message))?;
            replacements.extend(redacted.map(|value| write.replace(value)));
        }
        Ok(replacements)
    }
}

impl Redact {
    /// The new value, or `None` if there is nothing to mask.
    fn redact(&self, write: &Write) -> Result<Option<String>, Rejection> {
        if write.is_json() {
            return self.redact_json(utf8(write)?);
        }
        if write.content_type().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("text/")) {
            if !is_utf8_by_type(write.content_type()) {
                return Err(Rejection::new("form", "a text must be UTF-8, and its type says another charset"));
            }
            // A text is masked like a JSON string.
            let redacted = self.redact_json(&quote(utf8(write)?))?;
            return redacted.map(|json| unquote(&json)).transpose();
        }
        match self.other_types {
            OtherTypes::Pass => Ok(None),
            OtherTypes::Refuse => Err(Rejection::new("type", "only JSON and texts can be stored here")),
        }
    }

    fn redact_json(&self, json: &str) -> Result<Option<String>, Rejection> {
        self.places.rewrite(json, |rules, json| self.edit(rules, json))
    }

    fn edit(&self, rules: &[&usize], json: &str) -> Result<Edit, Rejection> {
        let mut rules: Vec<_> = rules.iter().map(|index| **index).collect();
        // Several pointers of one rule can name this place; rules apply in their order.
        rules.sort_unstable();
        rules.dedup();
        let masks = || rules.iter().filter_map(|index| self.masks.get(*index));
        let before = match json.as_bytes().first() {
            Some(b'"') => unquote(json)?,
            Some(b'-' | b'0'..=b'9') => json.to_owned(),
            Some(b'n') => return Ok(Edit::Keep),
            // An object, an array or a boolean is masked as a whole.
            _ => {
                let whole = masks().find(|mask| mask.pattern.is_none());
                return Ok(whole.map_or(Edit::Keep, |mask| Edit::Replace(quote(&mask.mask))));
            }
        };
        let after = masks().fold(before.clone(), |text, mask| mask.apply(&text));
        Ok(if after == before { Edit::Keep } else { Edit::Replace(quote(&after)) })
    }
}

impl Rule {
    /// Adds the places of the rule.
    fn place(&self, index: usize, places: &mut Fields<usize>) -> Result<(), Invalid> {
        let at = match (&self.at, &self.pattern) {
            (Some(at), _) => at.as_str(),
            (None, Some(_)) => "",
            (None, None) => return Err(Invalid::new("", "name `at`, `pattern`, or both")),
        };
        let invalid = |malformed: &dyn ToString| Invalid::new("/at", malformed.to_string());
        places.add(at, index).map_err(|malformed| invalid(&malformed))?;
        if self.pattern.is_some() && !at.ends_with("/**") {
            places.add(&format!("{at}/**"), index).map_err(|malformed| invalid(&malformed))?;
        }
        Ok(())
    }
}

impl Mask {
    fn new(Rule { pattern, mask, keep_last, .. }: Rule) -> Result<Self, Invalid> {
        let refuse = |why: String| Invalid::new("/pattern", why);
        let compile = |pattern: String| {
            let pattern = RegexBuilder::new(&pattern).size_limit(PATTERN_BYTES_MAX).build();
            let pattern = pattern.map_err(|error| refuse(error.to_string()))?;
            if pattern.is_match("") {
                return Err(refuse("it must not match the empty text".to_owned()));
            }
            // The automaton states that this caches stay in the memory that each write starts from.
            pattern.find_iter(REHEARSAL).for_each(drop);
            Ok(pattern)
        };
        Ok(Self { pattern: pattern.map(compile).transpose()?, mask, keep_last })
    }

    fn apply(&self, text: &str) -> String {
        match &self.pattern {
            Some(pattern) => {
                let hide = |found: &Captures<'_>| self.hide(found.get(0).map_or("", |found| found.as_str()));
                pattern.replace_all(text, hide).into_owned()
            }
            None => self.hide(text),
        }
    }

    fn hide(&self, text: &str) -> String {
        // Masked text is not masked again, so that a value that was read can be written back.
        if text.strip_prefix(&self.mask).is_some_and(|rest| rest.chars().count() <= self.keep_last) {
            return text.to_owned();
        }
        let length = text.chars().count();
        let kept = if length / 2 >= self.keep_last { self.keep_last } else { 0 };
        text.chars().skip(length - kept).fold(self.mask.clone(), |mut masked, character| {
            masked.push(character);
            masked
        })
    }
}

fn default_mask() -> String {
    "***".to_owned()
}

/// Whether the text of a media type is UTF-8 by its parameters. The bytes of UTF-16 can be valid UTF-8 in which no pattern is found.
fn is_utf8_by_type(content_type: &str) -> bool {
    let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut charsets = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    charsets.all(|(_, charset)| {
        let charset = charset.trim().trim_matches('"');
        ["utf-8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))
    })
}

fn utf8(write: &Write) -> Result<&str, Rejection> {
    std::str::from_utf8(write.bytes()).map_err(|_| Rejection::new("form", "the value is not UTF-8"))
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The contents of a JSON string. Half of a surrogate pair is an error.
fn unquote(json: &str) -> Result<String, Rejection> {
    serde_json::from_str(json).map_err(|_| Rejection::new("form", "a text of the value is not Unicode"))
}

brink_guest::export_transformer!(Redact);

#[cfg(test)]
mod tests {
    use brink_guest::config;
    use serde_json::{Value, json};

    use super::*;

    fn redact(config: &Value) -> Result<Redact, Invalid> {
        Redact::configure(config::parse(&config.to_string())?)
    }

    /// The new value, or `None` if it stays.
    fn transform_raw(config: &Value, content_type: &str, value: &[u8]) -> Result<Option<String>, String> {
        let writes = [Write::deletion(0, "k"), Write::raw(1, "k", content_type, value)];
        let replacements = redact(config).unwrap().transform(&writes).map_err(|rejection| rejection.code)?;
        assert!(replacements.iter().all(|replacement| replacement.item == 1));
        Ok(replacements.into_iter().next().map(|replacement| String::from_utf8(replacement.value).unwrap()))
    }

    fn transform(rules: &Value, value: &str) -> Option<String> {
        transform_raw(&json!({ "rules": rules }), "application/json", value.as_bytes()).unwrap()
    }

    #[test]
    fn a_field_is_masked_whatever_it_holds() {
        let rules = json!([{"at": "/secret"}]);
        for value in [r#""x""#, "17", "true", r#"{"a":1}"#, "[1]", r#""""#] {
            let masked = transform(&rules, &format!(r#"{{"n":1.0,"secret":{value}}}"#));
            assert_eq!(masked.as_deref(), Some(r#"{"n":1.0,"secret":"***"}"#), "{value}");
        }
        assert_eq!(transform(&rules, r#"{"secret":null}"#), None);
        assert_eq!(transform(&rules, r#"{"other":"x"}"#), None);
    }

    #[test]
    fn the_end_can_stay_readable_if_it_is_less_than_half() {
        let rules = json!([{"at": "/cards/*", "keep_last": 4, "mask": "…"}]);
        let masked = transform(&rules, r#"{"cards":["4111111111111111",4111111111111112,"1234567","12345678"]}"#);
        assert_eq!(masked.as_deref(), Some(r#"{"cards":["…1111","…1112","…","…5678"]}"#));
    }

    #[test]
    fn what_is_masked_already_stays() {
        let rules = json!([{"at": "/card", "keep_last": 4}, {"at": "/name"}]);
        assert_eq!(transform(&rules, r#"{"card":"***1111","name":"***"}"#), None);
        assert_eq!(transform(&rules, r#"{"card":"***11111"}"#).as_deref(), Some(r#"{"card":"***1111"}"#));
    }

    #[test]
    fn patterns_are_masked_in_every_text_and_number() {
        let rules = json!([{"pattern": r"\b\d{16}\b", "keep_last": 2}]);
        let value = r#"{"a":"no 4111111111111111, 4111111111111122","b":[{"c":4111111111111133}],"d":"12"}"#;
        let masked = r#"{"a":"no ***11, ***22","b":[{"c":"***33"}],"d":"12"}"#;
        assert_eq!(transform(&rules, value).as_deref(), Some(masked));
        assert_eq!(transform(&rules, "4111111111111111").as_deref(), Some("\"***11\""));
        assert_eq!(transform(&rules, r#"{"4111111111111111":1}"#), None);
    }

    #[test]
    fn a_pattern_can_be_bound_to_places() {
        let rules = json!([{"at": "/notes", "pattern": "[a-z]+@[a-z.]+"}]);
        let masked = transform(&rules, r#"{"notes":["mail ann@example.org"],"mail":"ann@example.org"}"#);
        assert_eq!(masked.as_deref(), Some(r#"{"notes":["mail ***"],"mail":"ann@example.org"}"#));
        let rules = json!([{"at": "/notes/**", "pattern": "a"}]);
        assert_eq!(transform(&rules, r#"{"notes":["a"]}"#).as_deref(), Some(r#"{"notes":["***"]}"#));
    }

    #[test]
    fn rules_apply_in_their_order() {
        let rules = json!([{"pattern": "secret", "mask": "x"}, {"at": "/a", "pattern": "x", "mask": "y"}]);
        assert_eq!(transform(&rules, r#"{"a":"secret","b":"secret"}"#).as_deref(), Some(r#"{"a":"y","b":"x"}"#));
    }

    #[test]
    fn texts_are_masked_too() {
        let config = json!({"rules": [{"pattern": "secret"}]});
        let text = |content_type: &str, value: &[u8]| transform_raw(&config, content_type, value);
        assert_eq!(text("text/plain", b"a \"secret\"\n").unwrap().as_deref(), Some("a \"***\"\n"));
        assert_eq!(text("Text/Markdown; charset=utf-8", b"fine"), Ok(None));
        assert_eq!(text("text/plain", b"\xff"), Err("form".to_owned()));
        assert_eq!(text("text/plain; format=flowed; Charset=\"UTF-8\"", b"fine"), Ok(None));
        assert_eq!(text("text/plain;charset=us-ascii", b"fine"), Ok(None));
        assert_eq!(text("text/plain; charset=utf-16le", b"s\0e\0c\0r\0e\0t\0"), Err("form".to_owned()));
    }

    #[test]
    fn what_cannot_be_looked_into_is_refused() {
        let mut config = json!({"rules": [{"at": "/a"}]});
        assert_eq!(transform_raw(&config, "application/octet-stream", b"x"), Err("type".to_owned()));
        assert_eq!(transform_raw(&config, "application/ld+json", b"{"), Err("form".to_owned()));
        // Half of a surrogate pair is JSON, but no text.
        assert_eq!(transform_raw(&config, "application/json", br#"{"a":"\ud800"}"#), Err("form".to_owned()));
        assert_eq!(transform_raw(&config, "application/json", br#"{"\ud800":1}"#), Err("form".to_owned()));
        config["other_types"] = json!("pass");
        assert_eq!(transform_raw(&config, "application/octet-stream", b"x"), Ok(None));
    }

    #[test]
    fn a_wrong_configuration_is_refused_where_it_is_wrong() {
        let path = |config: Value| redact(&config).unwrap_err().path;
        assert_eq!(path(json!(null)), "");
        assert_eq!(path(json!({"rules": []})), "/rules");
        assert_eq!(path(json!({"rules": [{"at": "/a"}, {}]})), "/rules/1");
        assert_eq!(path(json!({"rules": [{"at": "a"}]})), "/rules/0/at");
        assert_eq!(path(json!({"rules": [{"pattern": "("}]})), "/rules/0/pattern");
        assert_eq!(path(json!({"rules": [{"pattern": "a*"}]})), "/rules/0/pattern");
        assert_eq!(path(json!({"rules": [{"pattern": "[a-z]{10000}{1000}"}]})), "/rules/0/pattern");
        assert_eq!(path(json!({"rules": [{"at": "/a", "keep": 1}]})), "/rules/0/keep");
        assert_eq!(path(json!({"rules": [{"at": "/a"}], "other_types": "drop"})), "/other_types");
    }
}
