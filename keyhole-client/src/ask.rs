//! Asking: which server, how often, how long, and when to stop.

use crate::arguments::Server;
use crate::dice::Dice;
use crate::errand::Errand;
use crate::failure::{Exit, Failure};
use crate::http::{Answer, Message, Trouble, exchange};
use crate::problem;
use crate::transport::Transport;
use alloc::string::String;
use alloc::vec::Vec;
use keyhole_protocol::{CONFIRM_PATH, Grant, PORTS_PATH, Purpose, decimal, sign, verify};

/// All in milliseconds.
const CONNECT_TIME: u64 = 3_000;
const ANSWER_TIME: u64 = 30_000;
const CONFIRM_TIME: u64 = 2_000;
const FIRST_PAUSE: u64 = 200;
const LONGEST_PAUSE: u64 = 5_000;

/// Asks until there is a grant, a refusal, or no time left.
///
/// # Errors
/// With the refusal, or with what went wrong last.
pub fn ask<T: Transport>(transport: &mut T, errand: &Errand, dice: &mut Dice) -> Result<Grant, Failure> {
    let mut asking = Asking {
        deadline: transport.now().saturating_add(errand.patience),
        signature: sign(&errand.token, Purpose::Request, errand.request.as_bytes()),
        buffer: Vec::new(),
        transport,
        errand,
    };
    let first = dice.below(errand.servers.len() as u64) as usize;
    let (before, after) = errand.servers.split_at_checked(first).unwrap_or_default();
    let mut pause = FIRST_PAUSE;
    loop {
        let mut last = None;
        for server in after.iter().chain(before) {
            match asking.attempt(server) {
                Attempt::Granted(grant) => {
                    asking.confirm(server);
                    return Ok(grant);
                }
                Attempt::Refused(failure) => return Err(failure),
                Attempt::Failed(trouble) => last = Some((server, trouble)),
            }
            if asking.time_left() == 0 {
                break;
            }
        }
        let wait = pause / 2 + dice.below(pause / 2 + 1);
        if wait >= asking.time_left() {
            return Err(asking.give_up(last));
        }
        asking.transport.pause(wait);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Attempt {
    Granted(Grant),
    Refused(Failure),
    Failed(Trouble),
}

struct Asking<'a, T> {
    transport: &'a mut T,
    errand: &'a Errand,
    signature: String,
    /// Serves all attempts.
    buffer: Vec<u8>,
    deadline: u64,
}

impl<T: Transport> Asking<'_, T> {
    fn time_left(&self) -> u64 {
        self.deadline.saturating_sub(self.transport.now())
    }

    fn attempt(&mut self, server: &Server) -> Attempt {
        let Asking { errand, deadline, .. } = *self;
        let message = Message { host: &server.text, path: PORTS_PATH, signature: &self.signature, body: &errand.request };
        let call = Call { server, message, connect_time: CONNECT_TIME, answer_time: ANSWER_TIME, deadline };
        match call.perform(self.transport, &mut self.buffer) {
            Ok(answer) => judge(errand, server, &answer),
            Err(trouble) => Attempt::Failed(trouble),
        }
    }

    /// Tells the server that its grant has come. It does not matter much whether that succeeds.
    fn confirm(&mut self, server: &Server) {
        let body = &self.errand.confirm;
        let signature = sign(&self.errand.token, Purpose::Confirm, body.as_bytes());
        let message = Message { host: &server.text, path: CONFIRM_PATH, signature: &signature, body };
        let deadline = self.transport.now() + CONFIRM_TIME;
        let call = Call { server, message, connect_time: CONFIRM_TIME, answer_time: CONFIRM_TIME, deadline };
        let _ = call.perform(self.transport, &mut self.buffer);
    }

    fn give_up(&self, last: Option<(&Server, Trouble)>) -> Failure {
        let mut text = String::from("no keyhole server granted ports within ");
        decimal::push(&mut text, self.errand.patience / 1000);
        text.push_str(" s, tried");
        for server in &self.errand.servers {
            text.push(' ');
            text.push_str(&server.text);
        }
        if let Some((server, trouble)) = last {
            let words = trouble.describe();
            for part in ["; the last reason, from ", &server.text, ": ", &words] {
                text.push_str(part);
            }
        }
        Failure::new(Exit::TimeUp, &[&text])
    }
}

/// One connection, one exchange.
struct Call<'a> {
    server: &'a Server,
    message: Message<'a>,
    connect_time: u64,
    answer_time: u64,
    /// Of both together.
    deadline: u64,
}

impl Call<'_> {
    fn perform<'b>(&self, transport: &mut impl Transport, buffer: &'b mut Vec<u8>) -> Result<Answer<'b>, Trouble> {
        let connect_deadline = self.deadline.min(transport.now() + self.connect_time);
        let result = match transport.connect(self.server.address, connect_deadline) {
            Ok(()) => {
                let answer_deadline = self.deadline.min(transport.now() + self.answer_time);
                exchange(transport, &self.message, buffer, answer_deadline)
            }
            Err(fault) => Err(Trouble::Fault(fault)),
        };
        transport.disconnect();
        result
    }
}

fn judge(errand: &Errand, server: &Server, answer: &Answer<'_>) -> Attempt {
    match answer.status {
        200 => match granted(errand, answer) {
            Ok(grant) => Attempt::Granted(grant),
            Err(trouble) => Attempt::Failed(trouble),
        },
        400 | 401 | 403 | 404 | 409 | 413 | 422 => Attempt::Refused(refused(server, answer)),
        status => Attempt::Failed(Trouble::Status(status)),
    }
}

fn granted(errand: &Errand, answer: &Answer<'_>) -> Result<Grant, Trouble> {
    let signature = answer.signature.unwrap_or_default();
    if !verify(&errand.token, Purpose::Grant, answer.body.as_bytes(), signature) {
        return Err(Trouble::BadAnswer("the answer is not signed with the job's token"));
    }
    let grant = Grant::parse(answer.body).map_err(Trouble::BadBody)?;
    if grant.nonce != errand.nonce {
        return Err(Trouble::BadAnswer("the answer is to another request"));
    }
    if grant.ports.len() != errand.ports as usize {
        return Err(Trouble::BadAnswer("the answer has not as many ports as were asked for"));
    }
    Ok(grant)
}

fn refused(server: &Server, answer: &Answer<'_>) -> Failure {
    let mut status = String::new();
    decimal::push(&mut status, answer.status.into());
    let detail = problem::detail(answer.body);
    let reason = detail.as_deref().unwrap_or("it gave no reason");
    Failure::new(Exit::Refused, &["keyhole at ", &server.text, " refused the request (", &status, "): ", reason])
}
