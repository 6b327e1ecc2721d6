//! Decoding without copies: byte strings that are parts of the memory they are decoded from.
//!
//! serde gives a decoder no way to pass the owner of its input along, so [`within`] keeps it for the thread, and
//! [`deserialize`], which types name for their fields, takes its parts from there.

use std::cell::RefCell;
use std::fmt;

use bytes::Bytes;
use serde::Deserializer;
use serde::de::{Error, Visitor};

thread_local! {
    /// What the thread decodes from.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Decodes something from `source`. Its fields with [`deserialize`] share the memory of `source`, and keep all of it.
pub(crate) fn within<T>(source: &Bytes, decode: impl FnOnce() -> T) -> T {
    struct Restore(Option<Bytes>);

    impl Drop for Restore {
        fn drop(&mut self) {
            SOURCE.set(self.0.take());
        }
    }

    let _restore = Restore(SOURCE.replace(Some(source.clone())));
    decode()
}

/// Decodes a byte string as a part of what the thread decodes from ([`within`]), or as a copy.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    deserializer.deserialize_bytes(PartOf)
}

struct PartOf;

impl<'de> Visitor<'de> for PartOf {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E: Error>(self, part: &'de [u8]) -> Result<Bytes, E> {
        Ok(SOURCE.with_borrow(|source| match source {
            Some(source) if source.as_ptr_range().contains(&part.as_ptr()) => source.slice_ref(part),
            _ => Bytes::copy_from_slice(part),
        }))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Part(#[serde(deserialize_with = "deserialize")] Bytes);

    fn decode(bytes: &[u8]) -> Bytes {
        postcard::from_bytes::<Part>(bytes).unwrap().0
    }

    #[test]
    fn a_part_shares_the_memory_of_its_source_and_of_no_other() {
        let source = Bytes::from(postcard::to_stdvec(&b"a value"[..]).unwrap());
        let part = within(&source, || decode(&source));
        assert_eq!(part, "a value");
        assert!(source.as_ptr_range().contains(&part.as_ptr()));

        let other = source.to_vec();
        for copy in [within(&source, || decode(&other)), decode(&source)] {
            assert_eq!(copy, "a value");
            assert!(![&source[..], &other].iter().any(|bytes| bytes.as_ptr_range().contains(&copy.as_ptr())));
        }
    }

    #[test]
    fn sources_nest() {
        let outer = Bytes::from(postcard::to_stdvec(&b"outer"[..]).unwrap());
        let inner = Bytes::from(postcard::to_stdvec(&b"inner"[..]).unwrap());
        let part = within(&outer, || {
            assert_eq!(within(&inner, || decode(&inner)), "inner");
            decode(&outer)
        });
        assert!(outer.as_ptr_range().contains(&part.as_ptr()));
    }
}
