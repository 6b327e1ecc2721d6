//! Browsers, which send requests in the name of strangers.
//!
//! # Problem
//!
//! Any web page can make the browser of its reader send requests to every address that the reader reaches, a node on loopback
//! included. A page can also point its own name at a node; the browser then takes the node for the page's own site. And a stored
//! value may itself be a page with a script, which would run with the rights of the API's own origin.
//!
//! # Approach
//!
//! Browsers say where a request comes from, in headers that a page cannot set. [`Browsers::judge`] checks them before a request is
//! served:
//!
//! - `Host` must be an IP address, which no page can have for its name, or a name of the node.
//! - `Origin` must be the node's own or an allowed one, unless the request only reads: a page cannot see the answer then.
//! - `Sec-Fetch-Site` must not name another site, whatever the request does. Browsers do not send it to plain HTTP on other machines.
//!
//! A `POST` must be JSON or lines of JSON (`request`), since browsers send other types without asking the node first; they ask for
//! `PUT` and `DELETE` as well. Pages of allowed origins get the answers that CORS wants (<https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! An answer that carries a stored value is a download with an origin of its own, and no answer's type is guessed
//! ([`contain`], [`Browsers::harden`]).
//!
//! # Guarantees
//!
//! A page of another site changes nothing and reads nothing. Clients that are no browsers send none of these headers but `Host`.
//!
//! # Cost
//!
//! One pass over the headers of each request. Nothing is allocated for a request that is served.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};

use super::problem::{Kind, Problem};
use crate::net;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Which hosts and which origins a node takes for its own or allows.
pub(crate) struct Browsers {
    /// The names of the node, without ports. IP addresses are allowed besides.
    hosts: Vec<String>,
    /// Origins whose pages may use the API.
    origins: Vec<HeaderValue>,
}

/// What becomes of a request.
pub(super) enum Verdict<'a> {
    /// It is served. The answer goes to a page of this allowed origin, if there is one.
    Serve(Option<&'a HeaderValue>),
    /// A browser asks whether a page of this allowed origin may send a request.
    Preflight(&'a HeaderValue),
    Refuse(Problem),
}

impl Browsers {
    /// Names are compared regardless of case. `origins` are in the form in which browsers send them.
    pub(crate) fn new(hosts: Vec<String>, origins: &[String]) -> Self {
        let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        Self { hosts, origins }
    }

    /// Refuses what a page of another site may have made its browser send.
    pub(super) fn judge(&self, request: &Request) -> Verdict<'_> {
        let (method, headers) = (request.method(), request.headers());
        // One pass costs less than three look-ups.
        let (mut hosts, mut origin, mut site) = ([None; 2], None, None);
        for (name, value) in headers {
            if *name == header::HOST {
                hosts = [Some(value), hosts[0]];
            } else if *name == header::ORIGIN {
                origin = Some(value);
            } else if *name == SEC_FETCH_SITE {
                site = Some(value);
            }
        }
        let host = match self.host(request, hosts) {
            Ok(host) => host,
            Err(problem) => return Verdict::Refuse(problem),
        };
        if let Some(allowed) = origin.and_then(|origin| self.origins.iter().find(|allowed| *allowed == origin)) {
            let asks = method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
            return if asks { Verdict::Preflight(allowed) } else { Verdict::Serve(Some(allowed)) };
        }
        let only_reads = matches!(*method, Method::GET | Method::HEAD);
        if let Some(origin) = origin.filter(|origin| !only_reads && !is_own(origin, host)) {
            let detail = format!("the request comes from a page of {origin:?}; --allow-origin allows an origin");
            return Verdict::Refuse(Problem::new(Kind::FOREIGN_ORIGIN, detail));
        }
        if site.is_some_and(|site| site != "same-origin" && site != "none") {
            let detail = "the request comes from a page of another site; --allow-origin allows an origin, and an address \
                          that is typed into the browser comes from no page";
            return Verdict::Refuse(Problem::new(Kind::FOREIGN_ORIGIN, detail));
        }
        Verdict::Serve(None)
    }

    /// The host that a request names in the last two of its headers `Host`, with its port; none in a request of HTTP/1.0, which
    /// no browser sends.
    fn host<'r>(&self, request: &'r Request, named: [Option<&'r HeaderValue>; 2]) -> Result<Option<&'r str>, Problem> {
        let bad = |detail| Err(Problem::new(Kind::BAD_HEADER, detail));
        let [named_host, another] = named;
        if another.is_some() {
            return bad("the header Host is there twice");
        }
        let named_host = named_host.map(|host| host.to_str().unwrap_or_default());
        // HTTP/2 has it in its pseudo-header `:authority`, and a request to a proxy in its target.
        let authority = request.uri().authority().map(|authority| authority.as_str());
        let is_missing = match request.version() {
            Version::HTTP_09 | Version::HTTP_10 => false,
            Version::HTTP_11 => named_host.is_none(),
            _ => named_host.is_none() && authority.is_none(),
        };
        if is_missing {
            return bad("the header Host is missing");
        }
        if let Some(unknown) = [authority, named_host].into_iter().flatten().find(|host| !self.knows(host)) {
            let detail = format!(
                "this node does not have the name {:?}; use its IP address, or start it with --allow-host",
                net::without_port(unknown)
            );
            return Err(Problem::new(Kind::WRONG_HOST, detail));
        }
        Ok(authority.or(named_host))
    }

    fn knows(&self, authority: &str) -> bool {
        let host = net::without_port(authority);
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host)) || is_address(host)
    }

    /// Sets the headers that every answer has. `page` is the allowed origin that it goes to.
    pub(super) fn harden(&self, response: &mut Response, page: Option<&HeaderValue>) {
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        if self.origins.is_empty() {
            return;
        }
        // For caches, whether the answer goes to a page or not.
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if let Some(page) = page {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, page.clone());
            // Beyond those that pages see in any case.
            let seen = "allow, brink-consistency, brink-repeated, brink-revision, brink-staleness-ms, brink-trace-id, \
                        etag, retry-after";
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(seen));
        }
    }
}

/// Whether an origin is that of pages which this node itself serves. They come by plain HTTP.
fn is_own(origin: &HeaderValue, host: Option<&str>) -> bool {
    let origin = origin.as_bytes().strip_prefix(b"http://");
    origin.zip(host).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host.as_bytes()))
}

/// Whether a host is an IP address, as URLs and `Host` write it.
fn is_address(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    }
}

/// The answer to a preflight: what pages of allowed origins may send.
pub(super) fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, PUT, POST, DELETE"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "brink-user, content-type, idempotency-key, if-match, if-none-match, prefer, traceparent, tracestate",
        ),
        // In seconds.
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Marks an answer that carries stored values: a browser that opens it saves it, and a page that loads it anyway runs nothing.
pub(super) fn contain(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn browsers() -> Browsers {
        let hosts = ["localhost", "node1", "kv.example.org"].map(str::to_owned);
        Browsers::new(hosts.into(), &["https://app.example.org".to_owned()])
    }

    fn request(method: &str, uri: &str, version: Version, headers: &[(&str, &str)]) -> Request {
        let builder = Request::builder().method(method).uri(uri).version(version);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        builder.body(Body::empty()).unwrap()
    }

    /// The status with which a request is refused; 0 if it is served, 1 for a preflight.
    fn judged(request: &Request) -> u16 {
        match browsers().judge(request) {
            Verdict::Serve(_) => 0,
            Verdict::Preflight(_) => 1,
            Verdict::Refuse(problem) => problem.render("").status().as_u16(),
        }
    }

    #[test]
    fn a_host_is_an_address_or_a_name_of_the_node() {
        let host = |host: &str| judged(&request("GET", "/", Version::HTTP_11, &[("host", host)]));
        for known in [
            "127.0.0.1:8000",
            "10.1.2.3",
            "[::1]:8000",
            "[fe80::1]",
            "localhost",
            "LocalHost:8000",
            "node1:8000",
            "node1:",
            "KV.example.org",
        ] {
            assert_eq!(host(known), 0, "{known}");
        }
        for unknown in [
            "evil.example",
            "evil.example:8000",
            "node1.evil.example",
            "evil.example.kv.example.org",
            "127.0.0.1.evil.example",
            "user@127.0.0.1",
            "127.1",
            "[::1",
            "::1",
            "localhost.",
            "",
        ] {
            assert_eq!(host(unknown), 421, "{unknown}");
        }
    }

    #[test]
    fn a_host_is_named_once_in_its_place() {
        let sent = |uri: &str, version, headers: &[(&str, &str)]| judged(&request("GET", uri, version, headers));
        let (own, foreign) = (("host", "localhost"), ("host", "evil.example"));
        assert_eq!(sent("/", Version::HTTP_11, &[]), 400);
        assert_eq!(sent("/", Version::HTTP_11, &[own, own]), 400);
        assert_eq!(sent("/", Version::HTTP_10, &[]), 0);
        assert_eq!(sent("/", Version::HTTP_10, &[foreign]), 421);
        assert_eq!(sent("http://localhost/", Version::HTTP_2, &[]), 0);
        assert_eq!(sent("http://evil.example/", Version::HTTP_2, &[]), 421);
        assert_eq!(sent("/", Version::HTTP_2, &[]), 400);
        assert_eq!(sent("/", Version::HTTP_2, &[own]), 0);
        for (uri, header) in [("http://localhost/", foreign), ("http://evil.example/", own)] {
            assert_eq!(sent(uri, Version::HTTP_11, &[header]), 421, "{uri}");
            assert_eq!(sent(uri, Version::HTTP_2, &[header]), 421, "{uri}");
        }
    }

    #[test]
    fn pages_of_other_origins_change_nothing() {
        let host = ("host", "localhost:8000");
        let sent =
            |method: &str, origin: &str| judged(&request(method, "/", Version::HTTP_11, &[host, ("origin", origin)]));
        for method in ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            for foreign in [
                "http://evil.example",
                "http://localhost",
                "http://localhost:3000",
                "https://localhost:8000",
                "http://app.example.org",
                "https://app.example.org:8000",
                "null",
                "",
            ] {
                assert_eq!(sent(method, foreign), 403, "{method} {foreign}");
            }
            for allowed in ["http://localhost:8000", "https://app.example.org"] {
                assert_eq!(sent(method, allowed), 0, "{method} {allowed}");
            }
        }
        // The page does not see the answer.
        for method in ["GET", "HEAD"] {
            assert_eq!(sent(method, "http://evil.example"), 0, "{method}");
        }
        let without_host = request("PUT", "/", Version::HTTP_10, &[("origin", "http://localhost")]);
        assert_eq!(judged(&without_host), 403);
    }

    #[test]
    fn pages_of_other_sites_do_not_even_read() {
        let host = ("host", "localhost:8000");
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
            for (site, status) in
                [("cross-site", 403), ("same-site", 403), ("new", 403), ("same-origin", 0), ("none", 0)]
            {
                let headers = [host, ("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
                assert_eq!(judged(&request(method, "/", Version::HTTP_11, &headers)), status, "{method} {site}");
            }
            let allowed = [host, ("origin", "https://app.example.org"), ("sec-fetch-site", "cross-site")];
            assert_eq!(judged(&request(method, "/", Version::HTTP_11, &allowed)), 0, "{method}");
        }
    }

    #[test]
    fn pages_of_allowed_origins_are_told_what_they_may() {
        let preflight = |origin| {
            let headers = [("host", "localhost"), ("origin", origin), ("access-control-request-method", "PUT")];
            judged(&request("OPTIONS", "/", Version::HTTP_11, &headers))
        };
        assert_eq!((preflight("https://app.example.org"), preflight("https://evil.example")), (1, 403));

        let hardened = |origin: &str| {
            let (browsers, mut response) = (browsers(), Response::default());
            let request = request("GET", "/", Version::HTTP_11, &[("host", "localhost"), ("origin", origin)]);
            let Verdict::Serve(page) = browsers.judge(&request) else { panic!("it is served") };
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
            browsers.harden(&mut response, page);
            let headers = response.headers().clone();
            let varies: Vec<_> = headers.get_all(header::VARY).iter().map(|one| one.to_str().unwrap()).collect();
            assert_eq!(varies, ["Accept", "Origin"]);
            assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|allowed| allowed.to_str().unwrap().to_owned())
        };
        assert_eq!(hardened("https://app.example.org").unwrap(), "https://app.example.org");
        assert_eq!(hardened("https://evil.example"), None);
    }
}
