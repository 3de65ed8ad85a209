//! What an error of etcd's means for us: whether it happened nevertheless, whether another member may do better, and what to mend.

use std::error::Error as StdError;

use tonic::{Code, ConnectError, Status};

use super::ROOT;
use super::config::EtcdConfig;
use crate::error::{Error, ErrorKind};

const COMPACTED: &str = "etcd forgot the past that was being read";
const TOO_LARGE: &str = "an answer of etcd's is too large";
const BROKE_OFF: &str = "etcd broke off";

/// An attempt that failed.
#[derive(Debug)]
pub(super) struct Fault {
    /// It certainly did not happen.
    pub(super) not_done: bool,
    /// Worth trying again, at another member or over a fresh connection.
    pub(super) elsewhere: bool,
    /// The member says that it cannot just now: mostly for want of a leader, which it will have in a second or two.
    pub(super) passing: bool,
    /// It had its time, and said nothing; as one does whose leader died a moment ago.
    pub(super) silent: bool,
    /// What to say of it.
    pub(super) error: Error,
}

impl Fault {
    /// No answer within the time that this attempt had.
    pub(super) fn timeout(not_done: bool) -> Self {
        Self { silent: true, ..Self::lost(not_done, Error::unavailable("etcd does not answer in time")) }
    }

    /// Worth trying elsewhere.
    pub(super) fn lost(not_done: bool, error: Error) -> Self {
        Self { not_done, elsewhere: true, passing: false, silent: false, error }
    }

    /// Not worth it.
    fn refused_as(not_done: bool, error: Error) -> Self {
        Self { not_done, elsewhere: false, passing: false, silent: false, error }
    }

    /// Nothing but an operator can mend it, and nothing happened.
    pub(super) fn refused(error: Error) -> Self {
        // A wrong file is the operator's bad input while the program starts; later it is no fault of the caller's.
        let kind = if error.kind == ErrorKind::BadInput { ErrorKind::Unavailable } else { error.kind };
        Self::refused_as(true, Error { kind, ..error })
    }

    /// The same, with the member that it happened at, and the files that may be the cause.
    pub(super) fn at(mut self, endpoint: &str, config: &EtcdConfig) -> Self {
        let detail = self.error.detail.unwrap_or_default();
        if let Some(doubt) = doubt(&detail, config) {
            self.error.message = format!("etcd's certificate is not accepted: {doubt}");
        }
        let ours = config.own_certificate().unwrap_or_default();
        if detail.contains("received fatal alert") {
            self.error.message = format!("etcd does not accept our certificate: {ours}");
        }
        let mut place = format!("{endpoint}: {detail}").trim_end_matches(": ").to_owned();
        // What etcd has against a certificate, it tells its own log alone.
        if self.error.message == BROKE_OFF && !ours.is_empty() {
            place = format!("{place}; if this goes on, look into etcd's log: it may refuse our certificate; {ours}");
        }
        self.error.detail = Some(place);
        self
    }

    /// For a call that changes nothing: whether it happened is no question.
    pub(super) fn of_read(self) -> Error {
        self.error
    }

    /// For a call that changes something.
    pub(super) fn of_write(self) -> Error {
        if self.not_done {
            return self.error;
        }
        let message = format!("the change may or may not be written: {}", self.error.message);
        Error { kind: ErrorKind::Unknown, message, detail: self.error.detail }
    }
}

/// Whether the scan was overtaken by a compaction.
pub(super) fn is_compacted(error: &Error) -> bool {
    error.message == COMPACTED
}

/// Whether the answer was above our limit.
pub(super) fn is_too_large(error: &Error) -> bool {
    error.message == TOO_LARGE
}

/// Judges what etcd-client returned.
pub(super) fn judge(error: etcd_client::Error) -> Fault {
    match error {
        etcd_client::Error::GRpcStatus(status) if never_sent(&status) => unreachable_member(&status),
        etcd_client::Error::GRpcStatus(status) => match complaint(&status) {
            // A token that has ended is replaced by a fresh login.
            Some(message) if status.code() == Code::Unauthenticated => Fault::lost(true, Error::unavailable(message)),
            Some(message) => Fault::refused(Error::unavailable(message)),
            None => answered(&status),
        },
        etcd_client::Error::TransportError(error) => Fault::refused_as(
            true,
            Error::bad_input("the connection to etcd cannot be set up: check its endpoints and certificate files")
                .with_detail(causes(error.to_string(), error.source())),
        ),
        other => Fault::lost(false, Error::unavailable("etcd's answer made no sense").with_detail(other.to_string())),
    }
}

/// The connection was never made, so nothing was sent.
fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn unreachable_member(status: &Status) -> Fault {
    Fault::lost(true, Error::unavailable("etcd cannot be reached").with_detail(chain(status)))
}

/// What is wrong with etcd's certificate, in the words of an operator.
fn doubt(detail: &str, config: &EtcdConfig) -> Option<String> {
    let says = |part: &str| detail.contains(part);
    if !says("invalid peer certificate") {
        return None;
    }
    let authorities = config.authorities().unwrap_or_default();
    Some(match () {
        () if says("UnknownIssuer") => format!("the authority in {} did not sign it (etcd-tls.ca)", authorities.display()),
        () if says("xpired") => "it has expired, or a clock is wrong".to_owned(),
        () if says("NotValidForName") || says("not valid for name") => {
            "it is for another host than etcd-servers names".to_owned()
        }
        () => "see the detail".to_owned(),
    })
}

/// What an operator has to mend; none of it happened.
fn complaint(status: &Status) -> Option<String> {
    let message = status.message();
    let says = |part: &str| message.contains(part);
    let advice = match status.code() {
        Code::InvalidArgument if says("authentication failed") => {
            "etcd refused the user or the password: check etcd-user and etcd-password".to_owned()
        }
        Code::InvalidArgument if says("user name is empty") => "etcd asks for a user: set etcd-user and etcd-password".to_owned(),
        Code::FailedPrecondition if says("authentication is not enabled") => {
            "etcd-user is set, but etcd's authentication is switched off: enable it, or remove etcd-user".to_owned()
        }
        Code::PermissionDenied => format!("etcd-user may not do this: grant its role readwrite on the prefix {ROOT}"),
        Code::Unauthenticated => "etcd does not accept our login: check etcd-user and etcd-password".to_owned(),
        Code::ResourceExhausted if says("space exceeded") => {
            "etcd's database is full: run etcdctl compact, etcdctl defrag on each member and etcdctl alarm disarm, or raise \
             --quota-backend-bytes first"
                .to_owned()
        }
        _ => return None,
    };
    Some(advice)
}

/// Everything else that came back as a status, from the server or from the connection.
fn answered(status: &Status) -> Fault {
    let detail = format!("{:?}: {}", status.code(), chain(status));
    let from_server = status.message().starts_with("etcdserver: ");
    let says = |part: &str| status.message().contains(part);
    let fault = |not_done, elsewhere, error: Error| {
        let error = error.with_detail(detail);
        Fault { not_done, elsewhere, passing: false, silent: false, error }
    };
    let passing = |fault: Fault| Fault { passing: true, ..fault };
    match status.code() {
        // Whatever the code is: it differs between etcd's versions.
        _ if says("too many requests") => passing(fault(true, true, Error::unavailable("etcd has too much to do"))),
        _ if says("raft proposal dropped") => passing(fault(true, true, Error::unavailable("etcd's leader resigned"))),
        _ if says("not capable") => passing(fault(true, true, Error::unavailable("etcd is not ready yet"))),
        _ if says("for learner") => {
            fault(true, true, Error::unavailable("a member of etcd has no vote yet: leave learners out of etcd-servers"))
        }
        Code::OutOfRange if says("message length too large") => fault(false, false, Error::internal(TOO_LARGE)),
        Code::OutOfRange if says("has been compacted") => fault(true, false, Error::unavailable(COMPACTED)),
        Code::InvalidArgument if says("revision of auth store is old") => {
            fault(true, true, Error::unavailable("etcd's users changed meanwhile"))
        }
        // etcd's own limit, and that of its transport, which is a little higher.
        Code::InvalidArgument | Code::ResourceExhausted if says("too large") || says("larger than max") => {
            fault(true, false, Error::internal("a change is larger than etcd takes: raise its --max-request-bytes"))
        }
        Code::ResourceExhausted if from_server => fault(true, true, Error::unavailable("etcd has too much to do")),
        Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented
            if from_server =>
        {
            fault(true, false, Error::internal("etcd refused a request"))
        }
        Code::Unavailable if says("no leader") => {
            passing(fault(true, true, Error::unavailable("etcd has no leader: too few of its members live")))
        }
        // Others of its words: that its leader changed, that it stops. What was asked of it may have been done.
        Code::Unavailable if from_server => passing(fault(false, true, Error::unavailable(BROKE_OFF))),
        _ => fault(false, true, Error::unavailable(BROKE_OFF)),
    }
}

/// A status with its causes, which say what really was the matter.
fn chain(status: &Status) -> String {
    causes(status.message().to_owned(), status.source())
}

fn causes(mut text: String, mut cause: Option<&(dyn StdError + 'static)>) -> String {
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: Code, message: &str) -> Fault {
        judge(etcd_client::Error::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn only_what_certainly_did_not_happen_is_said_not_to_have_happened() {
        let cases = [
            (Code::PermissionDenied, "etcdserver: permission denied", true, false, "readwrite"),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                true,
                false,
                "etcd-password",
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", true, false, "set etcd-user"),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", true, false, "switched off"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", true, false, "full"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", true, true, "users"),
            (Code::Unavailable, "etcdserver: no leader", true, true, "no leader"),
            (Code::Unavailable, "etcdserver: rpc not supported for learner", true, true, "learners"),
            (Code::FailedPrecondition, "etcdserver: rpc not supported for learner", true, true, "learners"),
            (Code::Unavailable, "etcdserver: not capable", true, true, "not ready"),
            (Code::FailedPrecondition, "etcdserver: not capable", true, true, "not ready"),
            (Code::Unknown, "etcdserver: too many requests", true, true, "too much"),
            (Code::Unknown, "raft proposal dropped", true, true, "resigned"),
            (Code::Unavailable, "etcdserver: leader changed", false, true, "broke off"),
            (Code::Unavailable, "etcdserver: request timed out", false, true, "broke off"),
            (Code::Cancelled, "operation was canceled", false, true, "broke off"),
            (Code::Unknown, "transport error", false, true, "broke off"),
        ];
        for (code, message, not_done, elsewhere, says) in cases {
            let fault = judged(code, message);
            assert_eq!((fault.not_done, fault.elsewhere), (not_done, elsewhere), "{message}");
            assert!(fault.error.message.contains(says), "{message}: {}", fault.error.message);
            let kind = if not_done { ErrorKind::Unavailable } else { ErrorKind::Unknown };
            assert_eq!(fault.of_write().kind, kind, "{message}");
        }
    }

    #[test]
    fn what_a_member_says_of_an_election_or_of_too_much_to_do_passes_by_itself() {
        for (code, message, passes) in [
            (Code::Unavailable, "etcdserver: no leader", true),
            (Code::Unavailable, "etcdserver: leader changed", true),
            (Code::Unavailable, "etcdserver: server stopped", true),
            (Code::Unknown, "etcdserver: too many requests", true),
            (Code::Unknown, "raft proposal dropped", true),
            (Code::Unavailable, "etcdserver: rpc not supported for learner", false),
            (Code::Unavailable, "connection refused", false),
            (Code::Unknown, "transport error", false),
        ] {
            assert_eq!(judged(code, message).passing, passes, "{message}");
        }
    }
}
