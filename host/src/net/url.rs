//! Base URLs of nodes, in their one normal form: `http://host:port/kv-store/v1`, without a trailing slash.

/// The path under which every node serves its API.
pub const BASE_PATH: &str = "/kv-store/v1";

/// Whether a base URL must name its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The URL must name [`BASE_PATH`].
    Required,
    /// The URL may end after the port; [`BASE_PATH`] is added then.
    Optional,
}

/// The reason why a text is not the base URL of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It cannot be parsed.
    #[error("it is not a URL ({reason})")]
    Malformed {
        /// The parser's message.
        reason: String,
    },
    /// The scheme is not `http`.
    #[error("only http:// is supported")]
    Scheme,
    /// The path is not [`BASE_PATH`], or there is a query or a fragment.
    #[error("its path must be {BASE_PATH}")]
    Path,
    /// There is a user or a password.
    #[error("it must not contain a user or password")]
    Credentials,
}

/// Checks the base URL of a node and returns it in its normal form.
///
/// # Errors
///
/// See [`UrlError`].
pub fn base_url(found: &str, path: Path) -> Result<String, UrlError> {
    let mut url =
        reqwest::Url::parse(found.trim()).map_err(|error| UrlError::Malformed { reason: error.to_string() })?;
    if url.scheme() != "http" {
        return Err(UrlError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Credentials);
    }
    let found_path = url.path().trim_end_matches('/');
    let is_allowed = found_path == BASE_PATH || (found_path.is_empty() && path == Path::Optional);
    if !is_allowed || url.query().is_some() || url.fragment().is_some() {
        return Err(UrlError::Path);
    }
    url.set_path(BASE_PATH);
    Ok(url.into())
}

/// Splits a base URL into the parts that a request needs: `host:port` and the path.
pub fn authority_and_path(base_url: &str) -> (&str, &str) {
    let rest = base_url.strip_prefix("http://").unwrap_or(base_url);
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_has_one_normal_form() {
        for text in ["http://h:1/kv-store/v1", " http://h:1/kv-store/v1/ ", "http://H:1/kv-store/v1"] {
            assert_eq!(base_url(text, Path::Required).unwrap(), "http://h:1/kv-store/v1");
        }
        assert_eq!(base_url("http://h:1", Path::Optional).unwrap(), "http://h:1/kv-store/v1");
        assert_eq!(base_url("http://h:1/", Path::Optional).unwrap(), "http://h:1/kv-store/v1");
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for (text, error) in [
            ("https://h:1/kv-store/v1", UrlError::Scheme),
            ("http://h:1/v2", UrlError::Path),
            ("http://h:1", UrlError::Path),
            ("http://h:1/kv-store/v1?a=1", UrlError::Path),
            ("http://user@h:1/kv-store/v1", UrlError::Credentials),
        ] {
            assert_eq!(base_url(text, Path::Required), Err(error), "{text}");
        }
        for text in ["", "h:1", "http://"] {
            assert!(base_url(text, Path::Optional).is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_needs_authority_and_path() {
        assert_eq!(authority_and_path("http://[::1]:8000/kv-store/v1"), ("[::1]:8000", "/kv-store/v1"));
    }
}
