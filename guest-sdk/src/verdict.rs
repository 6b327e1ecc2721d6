//! Validators made of one function over a type of the author.

use serde::de::DeserializeOwned;

use crate::{Rejection, Write};

/// The answer of a function of [`export_validate!`](crate::export_validate) for one value: the rules that the value breaks.
/// Without any, the value is accepted.
///
/// ```
/// use brink_guest::Verdict;
///
/// #[derive(serde::Deserialize)]
/// struct User { name: String, age: u8 }
///
/// fn validate(user: User) -> Verdict {
///     Verdict::accept()
///         .require(!user.name.is_empty(), "/name", "empty", "a user has a name")
///         .require(user.age >= 18, "/age", "minimum", "must be 18 or more")
/// }
///
/// brink_guest::export_validate!(validate);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a verdict counts only if it is returned"]
pub struct Verdict {
    broken: Vec<Broken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Broken {
    path: String,
    code: String,
    message: String,
}

impl Verdict {
    /// No rule is broken.
    pub fn accept() -> Self {
        Self::default()
    }

    /// Adds a broken rule. `path` is a JSON pointer into the value, empty for the whole. The node keeps the first 100.
    pub fn refuse(mut self, path: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        self.broken.push(Broken { path: path.into(), code: code.into(), message: message.into() });
        self
    }

    /// Adds a broken rule unless `holds` is true.
    pub fn require(self, holds: bool, path: &str, code: &str, message: &str) -> Self {
        if holds { self } else { self.refuse(path, code, message) }
    }

    fn into_rejection(self, write: &Write) -> Option<Rejection> {
        let first = self.broken.first()?;
        let rejection = Rejection::new(&first.code, &first.message);
        let violations =
            self.broken.into_iter().map(|broken| write.violation(broken.path, broken.code, broken.message));
        Some(violations.fold(rejection, Rejection::with))
    }
}

/// Judges every value of a request. For the macros of this crate only.
///
/// Values that are not JSON or do not have the form of `T` are refused; deletions pass. The rejection has the code of the
/// first broken rule, and the violations of all writes.
#[doc(hidden)]
pub fn judge<T: DeserializeOwned>(writes: &[Write], validate: impl Fn(T) -> Verdict) -> Result<(), Rejection> {
    let mut refusal: Option<Rejection> = None;
    for write in writes {
        let of_this = match write.json::<T>() {
            Ok(None) => None,
            Ok(Some(value)) => validate(value).into_rejection(write),
            Err(rejection) => Some(rejection),
        };
        match (&mut refusal, of_this) {
            (_, None) => {}
            (None, first) => refusal = first,
            (Some(refusal), Some(next)) => refusal.violations.extend(next.violations),
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// Exports a function as a validator: `fn(T) -> Verdict`, or `fn(&Config, T) -> Verdict` with the configuration of the hook.
/// `T` and `Config` are any types that `serde` can read.
///
/// Values without the form of `T` are refused before the function is called; deletions are accepted. Use it once per crate;
/// the crate must be a `cdylib`. A plugin that looks at keys, at raw bytes or at several writes together implements
/// [`Validator`](crate::Validator) instead.
///
/// ```
/// use brink_guest::Verdict;
///
/// #[derive(serde::Deserialize)]
/// struct Limits { age_min: u8 }
///
/// #[derive(serde::Deserialize)]
/// struct User { age: u8 }
///
/// fn validate(limits: &Limits, user: User) -> Verdict {
///     Verdict::accept().require(user.age >= limits.age_min, "/age", "minimum", "too young")
/// }
///
/// brink_guest::export_validate!(validate, Limits);
/// ```
#[macro_export]
macro_rules! export_validate {
    ($validate:path) => {
        $crate::export_validate!(@ (), |_config: &(), value| $validate(value));
    };
    ($validate:path, $config:ty) => {
        $crate::export_validate!(@ $config, $validate);
    };
    (@ $config:ty, $validate:expr) => {
        const _: () = {
            struct Function($config);

            impl $crate::Validator for Function {
                type Config = $config;

                fn configure(config: $config) -> ::std::result::Result<Self, $crate::Invalid> {
                    ::std::result::Result::Ok(Self(config))
                }

                fn validate(&self, writes: &[$crate::Write]) -> ::std::result::Result<(), $crate::Rejection> {
                    let validate = $validate;
                    $crate::__judge(writes, |value| validate(&self.0, value))
                }
            }

            $crate::export_validator!(Function);
        };
    };
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    struct User {
        name: String,
        age: u8,
    }

    fn validate(user: User) -> Verdict {
        Verdict::accept().require(!user.name.is_empty(), "/name", "empty", "a user has a name").require(
            user.age >= 18,
            "/age",
            "minimum",
            "must be 18 or more",
        )
    }

    fn violations(writes: &[Write]) -> (String, Vec<(u32, String, String)>) {
        let rejection = judge(writes, validate).unwrap_err();
        (rejection.code, rejection.violations.into_iter().map(|v| (v.item, v.path, v.code)).collect())
    }

    #[test]
    fn a_value_that_breaks_no_rule_is_accepted() {
        let writes = [Write::json_value(0, "a", &json!({"name": "Ann", "age": 18})), Write::deletion(1, "b")];
        assert_eq!(judge(&writes, validate), Ok(()));
    }

    #[test]
    fn every_broken_rule_of_every_write_is_named() {
        let writes = [
            Write::json_value(0, "a", &json!({"name": "Ann", "age": 18})),
            Write::json_value(1, "b", &json!({"name": "", "age": 7})),
            Write::json_value(2, "c", &json!({"name": "Cem", "age": "old"})),
            Write::raw(3, "d", "text/plain", "x"),
        ];
        let (code, violations) = violations(&writes);
        assert_eq!(code, "empty");
        let expected = [(1, "/name", "empty"), (1, "/age", "minimum"), (2, "/age", "form"), (3, "", "not-json")];
        assert_eq!(violations, expected.map(|(item, path, code)| (item, path.to_owned(), code.to_owned())));
    }
}
