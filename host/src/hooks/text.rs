//! JSON from outside, made compact.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// `text` as compact JSON, every number as it was written. Says what is wrong if it is not JSON that every reader of
/// the store can parse (nesting, escapes and numbers included).
pub(crate) fn compact_json(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    serde_json::from_slice::<Strict>(&bytes).map_err(|error| error.to_string())?;
    if is_compact(&bytes) {
        return Ok(bytes);
    }
    let mut compact = Vec::with_capacity(bytes.len());
    let mut scanner = Scanner::default();
    compact.extend(bytes.into_iter().filter(|byte| scanner.is_content(*byte)));
    Ok(compact)
}

fn is_compact(bytes: &[u8]) -> bool {
    let mut scanner = Scanner::default();
    bytes.iter().all(|byte| scanner.is_content(*byte))
}

/// Tells white space between JSON tokens from content. Only for text that is known to be JSON.
#[derive(Default)]
struct Scanner {
    is_in_string: bool,
    is_escaped: bool,
}

impl Scanner {
    fn is_content(&mut self, byte: u8) -> bool {
        if self.is_escaped {
            self.is_escaped = false;
        } else if byte == b'"' {
            self.is_in_string = !self.is_in_string;
        } else if byte == b'\\' {
            self.is_escaped = true;
        }
        self.is_in_string || !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
    }
}

/// Any JSON, parsed in full (strings unescaped, numbers converted, depth limited) and thrown away.
/// `serde::de::IgnoredAny` will not do: it lets broken escapes and any depth pass.
struct Strict;

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Self;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_keeps_strings_and_numbers_as_they_are() {
        let text = b" { \"a b\\\" \" : [ 1.00000000000000000001 , true ,\nnull ] } ".to_vec();
        assert_eq!(compact_json(text).unwrap(), b"{\"a b\\\" \":[1.00000000000000000001,true,null]}");
    }

    #[test]
    fn what_readers_could_not_parse_is_refused() {
        let deep = [vec![b'['; 500], vec![b']'; 500]].concat();
        for text in [&b"{"[..], b"", b"1 2", b"\"\\ud800\"", b"\"\xff\"", b"{\"\\q\":1}", &deep] {
            assert!(compact_json(text.to_vec()).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }
}
