//! Who may do what.
//!
//! # Problem
//!
//! A node does what a request asks only if whoever sent it has the right to. One handler that forgets to ask is a hole, and a client
//! must not learn from a refusal whether a key, a plugin or a node exists.
//!
//! # Approach
//!
//! Each method of each route names the [`Right`] that it needs, where it is mounted (`route`, `router`). [`Access::admit`] decides
//! before the handler who sends a request, and refuses it without looking further. What is left is a [`Grant`], which the handler
//! gets with its request: a grant may be limited to prefixes of keys, and only the handler knows all keys that a request names. It
//! checks them before it reads or writes anything: the key of a path, the range of a page, each item of a batch and each line of a
//! stream.
//!
//! There are no tokens yet, so everyone is anonymous, and may do what `--anonymous` opens.
//!
//! # Guarantees
//!
//! - A handler is not reached without its right. One that is mounted past `route` gets no grant, and without it no request.
//! - A refusal depends on the request and on the rights of its sender, never on what the node has.
//!
//! # Cost
//!
//! A comparison of bits for each request. Nothing is allocated, unless it is refused.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use super::problem::{Kind, Problem};
use crate::storage::RangeQuery;

/// What a method of a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// Nothing.
    Open,
    /// One of the rights below, whichever.
    Any,
    /// To read entries.
    Read,
    /// To write entries, and to read them.
    Write,
    /// To read metrics.
    Metrics,
    /// To deploy plugins and hooks, to see what they do, and to read all entries: a plugin sees what is written.
    Deploy,
    /// To change the cluster, and all of the above.
    Admin,
    /// To be a node of the cluster. `caller` finds out.
    Node,
    /// Nothing: this is how a node proves itself.
    Proof,
}

impl Display for Right {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Open | Self::Proof => "none",
            Self::Any => "any",
            Self::Read => "read",
            Self::Write => "write",
            Self::Metrics => "metrics",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
            Self::Node => "node",
        })
    }
}

/// A set of rights. A right that includes others has their bits as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rights(u8);

impl Rights {
    const READ: Self = Self(1);
    pub(super) const WRITE: Self = Self(1 << 1).with(Self::READ);
    const METRICS: Self = Self(1 << 2);
    const DEPLOY: Self = Self(1 << 3).with(Self::READ);
    const ADMIN: Self = Self(1 << 4).with(Self::WRITE).with(Self::METRICS).with(Self::DEPLOY);
    /// To be a node without a proof.
    const PEERS: Self = Self(1 << 5);
    /// To come without TLS.
    const PLAIN: Self = Self(1 << 6);
    const ALL: Self = Self::ADMIN.with(Self::PEERS).with(Self::PLAIN);

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn meets(self, right: Right) -> bool {
        match right {
            Right::Open | Right::Proof => true,
            Right::Any => self.0 & Self::ADMIN.0 != 0,
            Right::Read => self.includes(Self::READ),
            Right::Write => self.includes(Self::WRITE),
            Right::Metrics => self.includes(Self::METRICS),
            Right::Deploy => self.includes(Self::DEPLOY),
            Right::Admin => self.includes(Self::ADMIN),
            // No client has it.
            Right::Node => false,
        }
    }
}

/// What anyone may do without credentials: the setting `--anonymous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Anonymous(Rights);

impl Anonymous {
    /// Everything that clients may do. Nodes prove themselves.
    pub(crate) const CLIENTS: Self = Self(Rights::ADMIN.with(Rights::PLAIN));
    pub(crate) const ALL: Self = Self(Rights::ALL);

    /// The words of the setting.
    const WORDS: [(&str, Rights); 7] = [
        ("read", Rights::READ),
        ("write", Rights::WRITE),
        ("deploy", Rights::DEPLOY),
        ("metrics", Rights::METRICS),
        ("admin", Rights::ADMIN),
        ("peers", Rights::PEERS),
        ("plain", Rights::PLAIN),
    ];

    /// What one word opens; none if there is no such word.
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        Self::WORDS.into_iter().find(|(known, _)| *known == word).map(|(_, rights)| Self(rights))
    }

    /// All words, for people.
    pub(crate) fn words() -> String {
        Self::WORDS.map(|(word, _)| word).join(", ")
    }

    #[must_use]
    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0.with(other.0))
    }

    /// Whether nodes may take part without a proof.
    pub(crate) fn peers(self) -> bool {
        self.0.includes(Rights::PEERS)
    }
}

/// Decides who sends a request, and whether they may.
pub(crate) struct Access {
    anonymous: Anonymous,
}

impl Access {
    pub(crate) fn new(anonymous: Anonymous) -> Self {
        Self { anonymous }
    }

    /// What the sender of a request may do, if that includes what its route needs.
    pub(super) fn admit(&self, right: Right) -> Result<Grant, Problem> {
        let grant = self.sender();
        if grant.rights.meets(right) { Ok(grant) } else { Err(unauthorized(right)) }
    }

    /// Who sends a request: without tokens, always somebody anonymous.
    fn sender(&self) -> Grant {
        Grant::new(self.anonymous.0, None)
    }
}

/// The sender may have the right, but has not said who they are.
fn unauthorized(right: Right) -> Problem {
    let detail = match right {
        Right::Any => "this node does nothing for anonymous clients; --anonymous names what they may do".to_owned(),
        right => format!(
            "this needs the right \"{right}\", which this node does not give to anonymous clients; \
                          --anonymous names what they may do"
        ),
    };
    Problem::new(Kind::UNAUTHORIZED, detail)
}

/// What the sender of a request may do.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    rights: Rights,
    /// Prefixes of the keys that it may read or write; none: all keys.
    prefixes: Option<Arc<[String]>>,
}

impl Grant {
    pub(super) fn new(rights: Rights, prefixes: Option<Arc<[String]>>) -> Self {
        Self { rights, prefixes }
    }

    /// Refuses a key that the grant does not cover.
    pub(super) fn check_key(&self, key: &str) -> Result<(), Problem> {
        self.check(|prefix| key.starts_with(prefix))
    }

    /// Refuses a range that may reach beyond what the grant covers. All keys between two with the same prefix have it too.
    pub(super) fn check_range(&self, range: &RangeQuery) -> Result<(), Problem> {
        let RangeQuery { prefix: of_range, start, end, .. } = range;
        self.check(|prefix| {
            let begins = |bound: &Option<String>| bound.as_ref().is_some_and(|bound| bound.starts_with(prefix));
            begins(of_range) || (begins(start) && begins(end))
        })
    }

    fn check(&self, is_within: impl Fn(&str) -> bool) -> Result<(), Problem> {
        match &self.prefixes {
            Some(prefixes) if !prefixes.iter().any(|prefix| is_within(prefix)) => {
                let detail = format!("this caller may only use keys that begin with one of {prefixes:?}");
                Err(Problem::new(Kind::FORBIDDEN, detail))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHTS: [Right; 8] =
        [Right::Open, Right::Any, Right::Read, Right::Write, Right::Metrics, Right::Deploy, Right::Admin, Right::Node];

    #[test]
    fn each_word_opens_what_it_says_and_no_more() {
        use Right::{Admin, Any, Deploy, Metrics, Open, Read, Write};
        let cases: [(&str, &[Right]); 10] = [
            ("", &[Open]),
            ("peers", &[Open]),
            ("plain", &[Open]),
            ("peers,plain", &[Open]),
            ("read", &[Open, Any, Read]),
            ("write", &[Open, Any, Read, Write]),
            ("metrics", &[Open, Any, Metrics]),
            ("deploy", &[Open, Any, Read, Deploy]),
            ("metrics,write", &[Open, Any, Read, Write, Metrics]),
            ("admin", &[Open, Any, Read, Write, Metrics, Deploy, Admin]),
        ];
        for (words, opened) in cases {
            let words = words.split(',').filter(|word| !word.is_empty());
            let anonymous =
                words.map(|word| Anonymous::of_word(word).unwrap()).fold(Anonymous::default(), Anonymous::with);
            let access = Access::new(anonymous);
            for right in RIGHTS {
                assert_eq!(access.admit(right).is_ok(), opened.contains(&right), "{anonymous:?} {right}");
            }
        }
        let all = Anonymous::WORDS.map(|(word, _)| Anonymous::of_word(word).unwrap());
        assert_eq!(all.into_iter().fold(Anonymous::default(), Anonymous::with), Anonymous::ALL);
        assert!(Access::new(Anonymous::ALL).admit(Right::Node).is_err(), "nodes are not clients");
        assert_eq!(Anonymous::of_word("peers").map(Anonymous::peers), Some(true));
        assert_eq!(Anonymous::of_word("admin").map(Anonymous::peers), Some(false));
        assert_eq!(Anonymous::of_word("Read"), None);
        assert_eq!(Anonymous::of_word("node"), None);
    }

    #[test]
    fn a_refusal_names_the_right_and_asks_for_a_credential() {
        let refusal = Access::new(Anonymous::default()).admit(Right::Deploy).unwrap_err();
        assert!(format!("{refusal:?}").contains("deploy"), "{refusal:?}");
        let answer = refusal.render("");
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    }

    fn limited_to(prefixes: &[&str]) -> Grant {
        Grant::new(Rights::WRITE, Some(prefixes.iter().map(|&prefix| prefix.to_owned()).collect()))
    }

    #[test]
    fn a_grant_covers_the_keys_below_its_prefixes() {
        let grant = limited_to(&["users/", "é"]);
        for key in ["users/", "users/a", "users/a/b", "é", "éa"] {
            assert!(grant.check_key(key).is_ok(), "{key}");
        }
        for key in ["", "a", "user", "users", "users0", "Users/a", "/users/a", "e", "xusers/"] {
            assert!(grant.check_key(key).is_err(), "{key}");
        }
        assert!(limited_to(&[]).check_key("a").is_err());
        assert!(limited_to(&[""]).check_key("a").is_ok());
        assert!(Grant::new(Rights::WRITE, None).check_key("a").is_ok());
        let refusal = grant.check_key("a").unwrap_err();
        assert!(format!("{refusal:?}").contains(r#"users/"#), "{refusal:?}");
        assert_eq!(refusal.render("").status(), 403);
    }

    #[test]
    fn a_grant_covers_ranges_that_cannot_leave_a_prefix() {
        let grant = limited_to(&["users/", "b"]);
        let is_covered = |prefix: Option<&str>, start: Option<&str>, end: Option<&str>| {
            let text = |bound: Option<&str>| bound.map(str::to_owned);
            let range =
                RangeQuery { prefix: text(prefix), start: text(start), end: text(end), ..RangeQuery::default() };
            grant.check_range(&range).is_ok()
        };
        for (prefix, start, end) in [
            (Some("users/"), None, None),
            (Some("users/a"), None, None),
            (Some("users/"), Some("a"), Some("z")),
            (None, Some("users/"), Some("users/z")),
            (None, Some("users/z"), Some("users/a")),
            (Some("a"), Some("b"), Some("bc")),
        ] {
            assert!(is_covered(prefix, start, end), "{prefix:?} {start:?} {end:?}");
        }
        for (prefix, start, end) in [
            (None, None, None),
            (Some(""), None, None),
            (Some("users"), None, None),
            (Some("a"), None, None),
            (None, Some("users/"), None),
            (None, None, Some("users/z")),
            (None, Some("users/"), Some("v")),
            (None, Some("a"), Some("users/z")),
            // Each in a prefix of the grant, with others between them.
            (None, Some("b"), Some("users/z")),
        ] {
            assert!(!is_covered(prefix, start, end), "{prefix:?} {start:?} {end:?}");
        }
        let everything = RangeQuery::default();
        assert!(Grant::new(Rights::WRITE, None).check_range(&everything).is_ok());
        assert!(limited_to(&[]).check_range(&everything).is_err());
    }
}
