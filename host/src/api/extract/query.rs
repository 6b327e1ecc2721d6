//! Query parameters: each route declares its own; any other and any repeated one is refused.

use std::borrow::Cow;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::api::problem::{Kind, Problem};

/// The parameters of a request. The first argument of every handler, see [`crate::api::router`].
pub(crate) struct Query<T>(pub(crate) T);

/// A set of parameters that a route takes.
pub(crate) trait Parameters: Sized {
    /// Their names.
    const NAMES: &'static [&'static str];

    /// Takes them from the values that a request gave.
    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem>;
}

/// A route without parameters.
pub(crate) struct NoParameters;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    /// Linearizable if that is possible promptly, else local.
    Prompt,
    /// Linearizable or an error.
    Strong,
    /// This node's committed state.
    Local,
}

/// The values of a query by their names.
pub(crate) struct Values<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<S: Sync, T: Parameters> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

impl<T: Parameters> Query<T> {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut values = Values(Vec::new());
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !T::NAMES.contains(&name.as_ref()) {
                let known = if T::NAMES.is_empty() { "none".to_owned() } else { T::NAMES.join(", ") };
                let detail = format!("there is no parameter {name:?} here; known are: {known}");
                return Err(Problem::new(Kind::BAD_PARAMETER, detail));
            }
            if values.0.iter().any(|(earlier, _)| *earlier == name) {
                return Err(Problem::new(Kind::BAD_PARAMETER, format!("the parameter {name:?} is given twice")));
            }
            values.0.push((name, value));
        }
        T::from_values(&mut values).map(Self)
    }
}

impl Values<'_> {
    /// Takes the value of a parameter.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let position = self.0.iter().position(|(found, _)| found == name)?;
        Some(self.0.swap_remove(position).1.into_owned())
    }

    /// Takes a parameter that is `true` or `false`. Absent means false; without a value it means true.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.text(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(found) => Err(not_allowed(name, found, "true or false")),
        }
    }
}

impl Parameters for NoParameters {
    const NAMES: &'static [&'static str] = &[];

    fn from_values(_: &mut Values<'_>) -> Result<Self, Problem> {
        Ok(Self)
    }
}

impl Parameters for Consistency {
    const NAMES: &'static [&'static str] = &["consistency"];

    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem> {
        match values.text("consistency").as_deref() {
            None => Ok(Self::Prompt),
            Some("strong") => Ok(Self::Strong),
            Some("local") => Ok(Self::Local),
            Some(found) => {
                Err(not_allowed("consistency", found, "strong or local; absent: strong if possible, else local"))
            }
        }
    }
}

/// The problem of a parameter whose value is not allowed.
pub(crate) fn not_allowed(name: &str, found: &str, allowed: &str) -> Problem {
    Problem::new(Kind::BAD_PARAMETER, format!("{name} is {found:?}; allowed: {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Page {
        limit: Option<String>,
        reverse: bool,
    }

    impl Parameters for Page {
        const NAMES: &'static [&'static str] = &["limit", "reverse"];

        fn from_values(values: &mut Values<'_>) -> Result<Self, Problem> {
            Ok(Self { limit: values.text("limit"), reverse: values.flag("reverse")? })
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert!(Query::<Page>::parse("limt=1").is_err());
        assert!(Query::<Page>::parse("limit=1&limit=2").is_err());
        let Query(page) = Query::<Page>::parse("limit=1&reverse").unwrap();
        assert_eq!(page.limit.unwrap(), "1");
        assert!(page.reverse);
    }

    #[test]
    fn a_route_without_parameters_takes_none() {
        assert!(Query::<NoParameters>::parse("").is_ok());
        assert!(Query::<NoParameters>::parse("consistency=local").is_err());
    }

    #[test]
    fn consistency_is_strong_or_local_or_absent() {
        let consistency = |query| Query::<Consistency>::parse(query).map(|Query(consistency)| consistency);
        assert_eq!(consistency("").unwrap(), Consistency::Prompt);
        assert_eq!(consistency("consistency=strong").unwrap(), Consistency::Strong);
        assert_eq!(consistency("consistency=local").unwrap(), Consistency::Local);
        assert!(consistency("consistency=eventual").is_err());
    }
}
