//! Who may use the API for front ends, and what becomes of those who only try.

use super::guard::seats::network;
use super::guard::{Denial, Header};
use super::problem;
use crate::config::Secret;
use crate::error::Error;
use crate::live::Live;
use crate::seldom::Seldom;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::{Choice, ConstantTimeEq};

/// The user of the API.
pub const API_USER: &str = "bwvisu-web";
/// The user who may read the metrics and nothing else.
pub const METRICS_USER: &str = "bwvisu-metrics";

/// So many wrong passwords in a row are answered at once.
const FREE_TRIES: u32 = 10;
/// A minute without a wrong one, and all is forgotten.
const MEMORY: Duration = Duration::from_secs(60);
/// Every further wrong one is answered this much later than the one before, up to the longest time.
const STEP: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(2);
/// Addresses that are remembered; beyond, the one that was quiet for longest is forgotten.
const MOST_ADDRESSES: usize = 4096;

/// A user's name, and the digest of name and password; none for who has no password.
type User = (&'static str, Option<[u8; 32]>);

/// The right credentials, and who has sent wrong ones.
pub struct Credentials {
    right: Live<[User; 2]>,
    guesses: Mutex<HashMap<IpAddr, Guesses>>,
    lines: Seldom<IpAddr>,
}

struct Guesses {
    count: u32,
    last: Instant,
}

impl Credentials {
    /// Those of [`API_USER`] and of [`METRICS_USER`] with these passwords.
    pub fn new(api: Option<&Secret>, metrics: Option<&Secret>) -> Self {
        Self { right: Live::new(right(api, metrics)), guesses: Mutex::default(), lines: Seldom::default() }
    }

    /// From now on the passwords are these. Who guessed is not forgotten.
    pub fn renew(&self, api: Option<&Secret>, metrics: Option<&Secret>) {
        self.right.set(right(api, metrics));
    }

    /// Whose the credentials are. They are judged first: the right ones pass at once, whatever else came from the same address, because
    /// all users of a front end come from one.
    pub fn check(&self, headers: &[Header], peer: IpAddr) -> Result<&'static str, Denial> {
        let header = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value.as_str());
        let given = header.and_then(basic_credentials);
        // Digests have one length, so that neither the length nor the first wrong letter shows in the time; and all users are looked at.
        let shown = digest(given.as_deref().unwrap_or_default());
        let users = self.right.get().map(|(user, right)| {
            let there = Choice::from(u8::from(right.is_some() && given.is_some()));
            (user, bool::from(shown.ct_eq(&right.unwrap_or_default()) & there))
        });
        if let Some((user, _)) = users.iter().find(|(_, equal)| *equal) {
            return Ok(user);
        }
        let error = Error::unauthorized("the user or the password of the API is wrong");
        if let Some(left_out) = self.lines.due(network(peer)) {
            log::warn!("api: a request from {peer} is refused: {error}{left_out}");
        }
        // Clients that first ask without a password, to see whether they need one, guess nothing.
        let after = if header.is_some() { self.note_guess(network(peer)) } else { Duration::ZERO };
        Err(Denial { response: problem(&error), after })
    }

    /// How long the answer to one more wrong password waits.
    fn note_guess(&self, from: IpAddr) -> Duration {
        let mut guesses = self.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        if guesses.len() >= MOST_ADDRESSES && !guesses.contains_key(&from) {
            let quietest = guesses.iter().min_by_key(|(_, guesses)| guesses.last).map(|(address, _)| *address);
            quietest.and_then(|address| guesses.remove(&address));
        }
        let now = Instant::now();
        let known = guesses.entry(from).or_insert(Guesses { count: 0, last: now });
        if now.duration_since(known.last) >= MEMORY {
            known.count = 0;
        }
        *known = Guesses { count: known.count.saturating_add(1), last: now };
        delay(known.count)
    }
}

fn right(api: Option<&Secret>, metrics: Option<&Secret>) -> [User; 2] {
    let of = |(user, password): (&'static str, Option<&Secret>)| {
        (user, password.map(|password| digest(format!("{user}:{}", password.expose()).as_bytes())))
    };
    [(API_USER, api), (METRICS_USER, metrics)].map(of)
}

fn delay(guesses: u32) -> Duration {
    STEP.saturating_mul(guesses.saturating_sub(FREE_TRIES)).min(LONGEST)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(crate) fn basic_credentials(header: &str) -> Option<Vec<u8>> {
    let (scheme, credentials) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(credentials.trim()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(password: &str) -> Vec<Header> {
        vec![("authorization".to_owned(), format!("Basic {}", STANDARD.encode(format!("{API_USER}:{password}"))))]
    }

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn credentials_are_read_from_the_basic_scheme_alone() {
        assert_eq!(basic_credentials("Basic YTpi").unwrap(), b"a:b");
        assert_eq!(basic_credentials("basic YTpi").unwrap(), b"a:b");
        for bad in ["Basic", "Basic ???", "Bearer YTpi", ""] {
            assert_eq!(basic_credentials(bad), None, "{bad}");
        }
    }

    #[test]
    fn wrong_passwords_are_answered_later_and_later_and_right_ones_at_once() {
        let credentials = Credentials::new(Some(&Secret::new("right".into())), None);
        let after = |headers: &[Header], from: u32| credentials.check(headers, address(from)).unwrap_err().after;
        let waits: Vec<Duration> = (0..200).map(|_| after(&header("wrong"), 1)).collect();
        assert!(waits[..10].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!((waits[10], waits[11], waits[199]), (STEP, 2 * STEP, LONGEST));
        assert!(credentials.check(&header("right"), address(1)).is_ok(), "the same address with the right one");
        assert_eq!(after(&header("wrong"), 2), Duration::ZERO, "another address");
        assert_eq!(after(&[], 1), Duration::ZERO, "nothing was guessed");
    }

    #[test]
    fn a_changed_password_counts_at_once_and_the_old_one_no_more() {
        let credentials = Credentials::new(Some(&Secret::new("right".into())), None);
        credentials.renew(Some(&Secret::new("new".into())), None);
        assert!(credentials.check(&header("new"), address(1)).is_ok());
        assert!(credentials.check(&header("right"), address(1)).is_err());
    }

    #[test]
    fn each_user_has_a_password_of_its_own_and_without_one_nobody_passes() {
        let (api, metrics) = (Secret::new("a".into()), Secret::new("m".into()));
        let shown = |user: &str, password: &str| {
            vec![("authorization".to_owned(), format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))]
        };
        let cases = [
            (Some(&api), Some(&metrics), API_USER, "a", Some(API_USER)),
            (Some(&api), Some(&metrics), METRICS_USER, "m", Some(METRICS_USER)),
            (Some(&api), Some(&metrics), API_USER, "m", None),
            (Some(&api), Some(&metrics), METRICS_USER, "a", None),
            (Some(&api), None, METRICS_USER, "", None),
            (None, Some(&metrics), API_USER, "", None),
            (None, None, METRICS_USER, "m", None),
        ];
        for (api, metrics, user, password, expected) in cases {
            let passed = Credentials::new(api, metrics).check(&shown(user, password), address(1)).ok();
            assert_eq!(passed, expected, "{user}:{password}");
        }
        assert!(Credentials::new(None, None).check(&[], address(1)).is_err());
    }

    #[test]
    fn a_minute_later_nothing_is_held_against_an_address() {
        let credentials = Credentials::new(Some(&Secret::new("right".into())), None);
        (0..50).for_each(|_| drop(credentials.check(&header("wrong"), address(1))));
        credentials.guesses.lock().unwrap().get_mut(&address(1)).unwrap().last -= MEMORY;
        assert_eq!(credentials.check(&header("wrong"), address(1)).unwrap_err().after, Duration::ZERO);
    }

    #[test]
    fn of_very_many_addresses_the_quietest_is_forgotten() {
        let credentials = Credentials::new(Some(&Secret::new("right".into())), None);
        (0..=MOST_ADDRESSES as u32).for_each(|number| {
            credentials.note_guess(address(number));
        });
        let guesses = credentials.guesses.lock().unwrap();
        assert_eq!(guesses.len(), MOST_ADDRESSES);
        assert!(!guesses.contains_key(&address(0)) && guesses.contains_key(&address(MOST_ADDRESSES as u32)));
    }
}
