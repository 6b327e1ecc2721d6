//! The key in a path: `/kv/<key>/`.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::api::problem::{Kind, Problem};
use crate::limits::KEY_BYTES_MAX;

/// The key in the path below the base path, `/kv/<key>/`: percent-decoded, without one trailing slash. `%2F` writes a
/// slash at the end of a key.
pub(crate) struct Key(pub(crate) String);

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(parts.uri.path())
    }
}

impl Key {
    fn parse(path: &str) -> Result<Self, Problem> {
        let raw = path.strip_prefix("/kv/").unwrap_or_default();
        let raw = raw.strip_suffix('/').unwrap_or(raw);
        let decoded = percent_decode_str(raw).decode_utf8();
        let key = decoded.map_err(|_| Problem::new(Kind::BAD_KEY, "the key is not UTF-8"))?.into_owned();
        check(&key)?;
        Ok(Self(key))
    }
}

/// Checks the length of a key.
pub(crate) fn check(key: &str) -> Result<(), Problem> {
    match key.len() {
        0 => Err(Problem::new(Kind::BAD_KEY, "the key is empty; a key has 1 to 1,024 bytes")),
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => Err(Problem::new(
            Kind::BAD_KEY,
            format!("the key has {bytes} bytes; a key has 1 to {KEY_BYTES_MAX} bytes of UTF-8"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Result<String, Problem> {
        Key::parse(&format!("/kv/{path}")).map(|Key(key)| key)
    }

    #[test]
    fn a_key_is_what_the_path_says_without_one_trailing_slash() {
        assert_eq!(key("a/").unwrap(), "a");
        assert_eq!(key("a/b").unwrap(), "a/b");
        assert_eq!(key("a%2Fb%20c%2F/").unwrap(), "a/b c/");
        assert_eq!(key("%C3%A9").unwrap(), "é");
        assert!(key("%FF").is_err());
        assert!(key("/").is_err());
        assert!(key(&"k".repeat(1024)).is_ok());
        assert!(key(&"k".repeat(1025)).is_err());
    }
}
