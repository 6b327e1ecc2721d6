//! How nodes prove to each other that they are of one cluster: by a secret that they share, and that never travels.
//!
//! # Problem
//!
//! Whoever takes part as a node reads everything, and decides what is written. Ids and URLs of members are public, so they
//! prove nothing.
//!
//! # Approach
//!
//! Each knows the secret, and shows it by an HMAC-SHA256 (RFC 2104) of what the other has just drawn at random. On the connection
//! that is then used:
//!
//! 1. The caller sends a random number and its URL ([`Greeting`]).
//! 2. The called node answers with a random number of its own, and with its proof. The caller goes on only if that is right, so
//!    that a snapshot never reaches a stranger.
//! 3. The caller sends its proof along with its request. A challenge is good for one request.
//!
//! A proof covers both numbers, both URLs, the side that proves, and the caller's method and path. So it can be neither replayed,
//! nor turned back on its maker, nor used for another request or at another node.
//!
//! # Rotation
//!
//! A node may know two secrets: it proves itself by the first, and accepts both. The second one is added on every node, then
//! their order is changed on every node, then the old one is taken away. Calls move to new connections as soon as a node proves
//! itself by another secret ([`Credentials::proves_by`]), and both ends close a connection once a secret that opened it is gone
//! ([`Credentials::withdrawn`]).
//!
//! # Limits
//!
//! What follows on a connection is neither encrypted nor signed: who can change packets between nodes can take one over. Whoever
//! holds the secret may call itself by any URL.
//!
//! # Cost
//!
//! A round trip and four HMACs for each connection; nothing for a call.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::limits::MEMBER_URL_BYTES_MAX;

/// Fewest characters of a secret. One that `brink cluster secret` made has 256 random bits.
const SECRET_CHARS_MIN: usize = 32;

/// Most characters of a secret.
const SECRET_CHARS_MAX: usize = 1_024;

/// Most secrets that a node knows at once: one, and another while they are exchanged.
const SECRETS_MAX: usize = 2;

/// What all proofs begin with, so that the secret proves nothing else.
const DOMAIN: &[u8] = b"brink-peer/1";

const NONCE_BYTES: usize = 32;

const ID_BYTES: usize = 4;

/// What tells secrets apart without showing them: the beginning of a hash.
type SecretId = [u8; ID_BYTES];

type Nonce = [u8; NONCE_BYTES];

/// Why a text has no secrets. It never contains a part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretsError {
    /// There is no line that is not empty.
    #[error("it is empty; `brink cluster secret` makes a secret")]
    Empty,
    /// There are too many.
    #[error("it has more than {SECRETS_MAX} lines; a line is a secret, and the first one is used")]
    TooMany,
    /// A secret is too short to be random enough, too long, or no text.
    #[error("each line must have {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} visible characters of ASCII")]
    Malformed,
}

/// The secrets that a node knows. The first is its own proof; any of them is another's.
#[derive(Clone)]
pub struct Secrets(Vec<Secret>);

#[derive(Clone)]
struct Secret {
    id: SecretId,
    mac: Hmac<Sha256>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.0.iter().map(|secret| BASE64.encode(secret.id))).finish()
    }
}

impl Secrets {
    /// Reads secrets from a text: one or two lines, each with 32 to 1,024 visible characters of ASCII.
    ///
    /// # Errors
    ///
    /// If the text is anything else.
    pub fn parse(text: &str) -> Result<Self, SecretsError> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match lines.len() {
            0 => Err(SecretsError::Empty),
            1..=SECRETS_MAX => lines.into_iter().map(Secret::parse).collect::<Result<_, _>>().map(Self),
            _ => Err(SecretsError::TooMany),
        }
    }

    /// A new secret, as a line of text.
    ///
    /// # Errors
    ///
    /// If the system has no random numbers.
    pub fn generate() -> std::io::Result<String> {
        Ok(BASE64.encode(random()?))
    }

    fn get(&self, id: SecretId) -> Option<&Secret> {
        self.0.iter().find(|secret| secret.id == id)
    }

    fn prove(&self, statement: &Statement<'_>) -> Option<String> {
        let secret = self.0.first()?;
        let mac = statement.signed(secret).finalize().into_bytes();
        Some(BASE64.encode([&secret.id[..], &mac].concat()))
    }

    /// The secret by which a proof is right; none if it is not. Takes the same time however much of it is right.
    fn verify(&self, statement: &Statement<'_>, proof: &str) -> Option<SecretId> {
        let proof = BASE64.decode(proof).ok()?;
        let (id, mac) = proof.split_first_chunk()?;
        let secret = self.get(*id)?;
        statement.signed(secret).verify_slice(mac).is_ok().then_some(*id)
    }
}

impl Secret {
    fn parse(line: &str) -> Result<Self, SecretsError> {
        let is_allowed = (SECRET_CHARS_MIN..=SECRET_CHARS_MAX).contains(&line.len())
            && line.bytes().all(|character| character.is_ascii_graphic());
        let mac = Hmac::new_from_slice(line.as_bytes()).map_err(|_| SecretsError::Malformed)?;
        let digest: [u8; 32] = Sha256::new().chain_update(DOMAIN).chain_update(line).finalize().into();
        match digest.first_chunk() {
            Some(id) if is_allowed => Ok(Self { id: *id, mac }),
            _ => Err(SecretsError::Malformed),
        }
    }
}

/// What a proof says.
struct Statement<'a> {
    side: Side,
    called_nonce: &'a Nonce,
    greeting: &'a Greeting,
    called_url: &'a str,
    /// The method of the caller's request, and its path below the base URL.
    request: (&'a str, &'a str),
}

/// Who proves itself.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Side {
    Caller = b'C',
    Called = b'S',
}

impl Statement<'_> {
    fn signed(&self, secret: &Secret) -> Hmac<Sha256> {
        let mut mac = secret.mac.clone();
        mac.update(DOMAIN);
        mac.update(&[self.side as u8]);
        mac.update(self.called_nonce);
        mac.update(&self.greeting.nonce);
        let (method, path) = self.request;
        for text in [self.called_url, &self.greeting.url, method, path] {
            // The length, so that no two lists of texts are one sequence of bytes.
            mac.update(&(text.len() as u64).to_le_bytes());
            mac.update(text.as_bytes());
        }
        mac
    }
}

/// What a caller begins with: a random number, and the URL of the node that it says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    nonce: Nonce,
    url: String,
}

impl Greeting {
    fn new(url: &str) -> std::io::Result<Self> {
        Ok(Self { nonce: random()?, url: url.to_owned() })
    }

    /// A greeting from its headers; none if they are malformed. A stranger may have sent them.
    pub fn of_headers(nonce: &str, url: &str) -> Option<Self> {
        let greeting = |nonce| Self { nonce, url: url.to_owned() };
        decode(nonce).filter(|_| url.len() <= MEMBER_URL_BYTES_MAX).map(greeting)
    }

    /// The random number, as a header has it.
    pub fn nonce(&self) -> String {
        BASE64.encode(self.nonce)
    }

    /// The URL that the caller says is its own.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// What a called node asks its caller to prove: that it has the secret, now.
#[derive(Debug)]
pub struct Challenge {
    greeting: Greeting,
    called_nonce: Nonce,
}

/// Who has made a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Anyone: this node was told to let everyone take part.
    Anyone,
    /// A node that has proved itself by the secret with this id, as the one at this URL.
    Node {
        /// Its base URL.
        url: String,
        /// What tells the secret from others.
        secret: [u8; 4],
    },
}

impl Challenge {
    /// The URL that the caller says is its own.
    pub fn caller_url(&self) -> &str {
        &self.greeting.url
    }
}

impl Caller {
    /// The id of the secret by which the caller has proved itself.
    pub fn secret(&self) -> Option<[u8; 4]> {
        match self {
            Self::Anyone => None,
            Self::Node { secret, .. } => Some(*secret),
        }
    }

    /// Whether the caller may say that it is the node at a URL.
    pub fn may_speak_for(&self, url: &str) -> bool {
        match self {
            Self::Anyone => true,
            Self::Node { url: own, .. } => own == url,
        }
    }
}

/// How this node proves itself to others, and what it accepts from them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Credentials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own_url: String,
    /// None: this node proves nothing.
    secrets: watch::Sender<Option<Secrets>>,
    /// Whether a caller without a proof is served, and a node without a proof called.
    accepts_anyone: bool,
}

impl Credentials {
    /// The credentials of the node at `own_url`. Without secrets it proves nothing. If it `accepts_anyone`, the others need not
    /// either.
    pub fn new(own_url: &str, secrets: Option<Secrets>, accepts_anyone: bool) -> Self {
        let secrets = watch::Sender::new(secrets);
        Self(Arc::new(Inner { own_url: own_url.to_owned(), secrets, accepts_anyone }))
    }

    /// Whether a caller without a proof is served, and a node without a proof called.
    pub fn accepts_anyone(&self) -> bool {
        self.0.accepts_anyone
    }

    /// Knows other secrets from now on.
    pub fn replace(&self, secrets: Secrets) {
        self.0.secrets.send_replace(Some(secrets));
    }

    /// The secret by which this node proves itself now, as its id.
    pub fn proves_by(&self) -> Option<[u8; 4]> {
        self.0.secrets.borrow().as_ref().and_then(|secrets| secrets.0.first()).map(|secret| secret.id)
    }

    /// On the calling side: begins to prove itself to a node.
    ///
    /// # Errors
    ///
    /// If the system has no random numbers.
    pub fn greet(&self) -> std::io::Result<Greeting> {
        Greeting::new(&self.0.own_url)
    }

    /// On the called side: answers a greeting with a challenge, and with its nonce and this node's own proof, as headers have
    /// them. None if this node has no secret.
    ///
    /// # Errors
    ///
    /// If the system has no random numbers.
    pub fn challenge(&self, greeting: Greeting) -> std::io::Result<Option<(Challenge, String, String)>> {
        let called_nonce = random()?;
        let statement = Statement {
            side: Side::Called,
            called_nonce: &called_nonce,
            greeting: &greeting,
            called_url: &self.0.own_url,
            request: ("", ""),
        };
        let proof = self.0.secrets.borrow().as_ref().and_then(|secrets| secrets.prove(&statement));
        Ok(proof.map(|proof| (Challenge { greeting, called_nonce }, BASE64.encode(called_nonce), proof)))
    }

    /// On the calling side: the id of the secret by which the node at `called_url` has proved itself in its answer to `greeting`. None
    /// if it has not.
    pub fn recognize(
        &self,
        greeting: &Greeting,
        called_url: &str,
        (called_nonce, called_proof): (&str, &str),
    ) -> Option<[u8; 4]> {
        let called_nonce = &decode(called_nonce)?;
        let theirs = Statement { side: Side::Called, called_nonce, greeting, called_url, request: ("", "") };
        self.0.secrets.borrow().as_ref()?.verify(&theirs, called_proof)
    }

    /// On the calling side: this node's proof for a request to the node at `called_url`, if that node has proved itself.
    pub fn respond(
        &self,
        greeting: &Greeting,
        called_url: &str,
        called: (&str, &str),
        request: (&str, &str),
    ) -> Option<String> {
        self.recognize(greeting, called_url, called)?;
        let called_nonce = &decode(called.0)?;
        let own = Statement { side: Side::Caller, called_nonce, greeting, called_url, request };
        self.0.secrets.borrow().as_ref()?.prove(&own)
    }

    /// On the called side: who makes a request, by its proof for the challenge on its connection. None: it is not served.
    pub fn admit(&self, challenge: Option<Challenge>, proof: Option<&str>, request: (&str, &str)) -> Option<Caller> {
        let proved = challenge.zip(proof).and_then(|(challenge, proof)| self.proved(challenge, proof, request));
        // A wrong proof may as well be left out.
        proved.or_else(|| self.0.accepts_anyone.then_some(Caller::Anyone))
    }

    fn proved(&self, challenge: Challenge, proof: &str, request: (&str, &str)) -> Option<Caller> {
        let Challenge { greeting, called_nonce } = challenge;
        let statement = Statement {
            side: Side::Caller,
            called_nonce: &called_nonce,
            greeting: &greeting,
            called_url: &self.0.own_url,
            request,
        };
        let secret = self.0.secrets.borrow().as_ref()?.verify(&statement, proof)?;
        Some(Caller::Node { url: greeting.url, secret })
    }

    /// Waits until the secret by which another node has proved itself is no longer accepted; for ever if it has not.
    pub async fn withdrawn(&self, secret: Option<[u8; 4]>) {
        let Some(secret) = secret else { return std::future::pending().await };
        let mut secrets = self.0.secrets.subscribe();
        let is_gone = |secrets: &Option<Secrets>| !secrets.iter().any(|secrets| secrets.get(secret).is_some());
        // The sender lives as long as `self`.
        let _ = secrets.wait_for(is_gone).await;
    }
}

fn random() -> std::io::Result<Nonce> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    Ok(nonce)
}

fn decode(nonce: &str) -> Option<Nonce> {
    BASE64.decode(nonce).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests;
