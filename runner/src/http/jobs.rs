//! The API for front ends.

use super::credentials::Credentials;
use super::guard::Service;
use super::message::{Request, Response};
use super::problem;
use super::slots::Slots;
use super::vitals;
use crate::domain::job::{Job, State, parse_job_id};
use crate::domain::text;
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::{JobView, Jobs, NewJob};
use crate::live::Live;
use crate::vitals::Vitals;
use jiff::fmt::temporal::DateTimePrinter;
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub use super::credentials::API_USER;

/// All variables of a job together, those that its template has no use for among them: they are kept as long as the job is.
const MOST_VARIABLE_BYTES: usize = 32 << 10;

/// Times are in UTC, with seconds.
const TIME: DateTimePrinter = DateTimePrinter::new().precision(Some(0));

/// The API on the verbs of [`Jobs`].
pub struct Api {
    jobs: Live<Jobs>,
    credentials: Arc<Credentials>,
    vitals: Arc<Vitals>,
    slots: Slots,
}

impl Api {
    /// The API for those who have these credentials, of a program with these vitals.
    pub fn new(jobs: Jobs, credentials: Arc<Credentials>, vitals: Arc<Vitals>) -> Self {
        let slots = Slots::new(jobs.limits().submissions_in_flight);
        Self { jobs: Live::new(jobs), credentials, vitals, slots }
    }

    /// From now on, requests are answered with these verbs; those that are under way finish with the old ones.
    pub fn renew(&self, jobs: Jobs) {
        self.slots.renew(jobs.limits().submissions_in_flight);
        self.jobs.set(jobs);
    }

    /// For the guard, which asks for the credentials before it reads a body.
    pub fn service(self: &Arc<Self>) -> Service {
        let api = Arc::clone(self);
        Service {
            handler: Arc::new(move |request| api.handle(request)),
            screen: Some(vitals::screen(Arc::clone(&self.credentials))),
            routes: route,
        }
    }

    /// Only requests that the screen let pass come here.
    fn handle(&self, request: &Request) -> Response {
        if let Some(page) = vitals::answer_with_metrics(&self.vitals, request) {
            return page;
        }
        self.route(request).unwrap_or_else(|error| {
            if !matches!(error.kind, ErrorKind::NotFound) {
                log::warn!("{} {} from {}: {error}", request.method, printable(&request.path), request.peer);
            }
            problem(&error)
        })
    }

    fn route(&self, request: &Request) -> Result<Response> {
        let path: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method.as_str(), &path[..]) {
            ("POST", ["jobs"]) => self.submit(request),
            ("GET", ["jobs"]) => self.list(),
            ("GET", ["jobs", id]) => Ok(Response::json(200, &job_object(&self.jobs.get().describe(parse_job_id(id)?)?))),
            ("DELETE", ["jobs", id]) => self.cancel(id),
            ("GET", ["cluster", "check-user", name]) => self.check_user(name),
            (_, ["cluster", rest @ ("gateways" | "audit" | "who"), ..]) => self.admin(request, &path[1..], rest),
            ("POST", ["cluster", "backup"]) => self.back_up(),
            (_, ["jobs"]) => Ok(method_not_allowed("GET, POST")),
            (_, ["jobs", _]) => Ok(method_not_allowed("GET, DELETE")),
            (_, ["cluster", "check-user", _]) => Ok(method_not_allowed("GET")),
            (_, ["cluster", "backup"]) => Ok(method_not_allowed("POST")),
            _ => Err(Error::not_found(
                "no such page; there are /jobs, /jobs/<id>, /cluster/check-user/<name>, /cluster/gateways, /cluster/who and /cluster/audit",
            )),
        }
    }

    fn submit(&self, request: &Request) -> Result<Response> {
        if let Some(kind) = request.header("content-type").filter(|kind| !is_json(kind)) {
            return Ok(Response::problem(415, &format!("the body must be application/json, not {}", printable(kind))));
        }
        let key = request.header("idempotency-key").map(check_key).transpose()?;
        let new = read_job(&request.body)?;
        let _slot = self.slots.take_for_submission()?;
        let id = self.jobs.get().submit(&new, key)?;
        Ok(Response::json(200, &json!({"job-id": id.to_string()})))
    }

    fn list(&self) -> Result<Response> {
        let ids: Vec<String> = self.jobs.get().list()?.iter().map(u64::to_string).collect();
        Ok(Response::json(200, &json!({"jobs": ids})))
    }

    fn cancel(&self, id: &str) -> Result<Response> {
        let id = parse_job_id(id).map_err(|_| Error::not_found("no such running job"))?;
        let _slot = self.slots.take()?;
        self.jobs.get().cancel(id)?;
        Ok(Response::json(200, &json!({"response": "job cancelled"})))
    }

    fn admin(&self, request: &Request, path: &[&str], what: &str) -> Result<Response> {
        // An audit asks other machines, and the trail of a year is a lot to read; the gateways' condition is in the database.
        let _slot = matches!(what, "audit" | "who").then(|| self.slots.take()).transpose()?;
        super::admin::handle(&self.jobs.get().admin(), request, path)
    }

    fn check_user(&self, name: &str) -> Result<Response> {
        let _slot = self.slots.take()?;
        match self.jobs.get().check_user(name) {
            Ok(_) => Ok(Response::json(200, &json!({"response": "success"}))),
            Err(error) if error.kind == ErrorKind::BadInput => Err(Error::not_found(error.message)),
            Err(error) => Err(error),
        }
    }

    /// The file stays on this machine: it holds secrets.
    fn back_up(&self) -> Result<Response> {
        let made = self.jobs.get().back_up()?;
        Ok(Response::json(200, &json!({"backup": made.name, "records": made.records})))
    }
}

/// What requests are counted by.
fn route(_: &str, path: &str) -> &'static str {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts[..] {
        ["jobs"] => "/jobs",
        ["jobs", _] => "/jobs/<id>",
        ["cluster", "check-user", _] => "/cluster/check-user/<name>",
        ["cluster", "gateways"] => "/cluster/gateways",
        ["cluster", "gateways", _] => "/cluster/gateways/<address>",
        ["cluster", "gateways", _, "drain"] => "/cluster/gateways/<address>/drain",
        ["cluster", "audit"] => "/cluster/audit",
        ["cluster", "who"] => "/cluster/who",
        ["cluster", "backup"] => "/cluster/backup",
        _ => vitals::route(path).unwrap_or("other"),
    }
}

/// A name that the front end gives to its request, so that it may repeat it.
fn check_key(key: &str) -> Result<&str> {
    let good = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    good.then_some(key).ok_or_else(|| Error::bad_input("Idempotency-Key: it must be 1 to 255 printable ASCII characters"))
}

fn is_json(kind: &str) -> bool {
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

pub(crate) fn read_job(body: &[u8]) -> Result<NewJob> {
    // A list of the members' values would be read as well, in an order that nobody promised.
    if body.trim_ascii_start().first().is_some_and(|byte| *byte != b'{') {
        return Err(Error::bad_input(
            "the body: it must be a JSON object, {\"uid\": …, \"template-name\": …, \"variables\": {…}}",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let job: NewJob = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let member = error.path().to_string();
        // "?" is what it says where the text itself is broken.
        let place = if member == "." || member == "?" { "the body".to_owned() } else { printable(&member) };
        Error::bad_input(format!("{place}: {}", printable(&error.into_inner().to_string())))
    })?;
    json.end().map_err(|_| Error::bad_input("the body: there is something behind the JSON object"))?;
    let bytes: usize = job.variables.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MOST_VARIABLE_BYTES {
        let words =
            format!("variables: {bytes} bytes in all, names and values; at most {MOST_VARIABLE_BYTES} are kept with a job");
        return Err(Error::bad_input(words));
    }
    Ok(job)
}

fn method_not_allowed(allowed: &str) -> Response {
    Response::problem(405, &format!("the method is not one of {allowed}")).with_header("Allow", allowed)
}

/// The beginning of a stranger's text, fit for a log line or an answer.
fn printable(text: &str) -> String {
    text::printable(&text.chars().take(300).collect::<String>())
}

/// A job as front ends see it.
pub fn job_object(view: &JobView) -> Value {
    let job = &view.job;
    let mut object = Map::new();
    let mut add = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    add("job-id", job.id.to_string().into());
    add("uid", job.uid.clone().into());
    add("batch-script", json!({"template-name": job.template_name, "variables": job.variables}));
    add("state", json!(job.state));
    add("services", services(job));
    add("details", job.details.clone().into());
    add("message", message(view).into());
    add("stale", view.stale.is_some().into());
    add("scheduler-job-id", json!(job.scheduler_job_id));
    add("outcome", json!(job.outcome));
    add("exit-code", json!(job.exit_code));
    for (name, time) in [
        ("observed-at", view.observed_at),
        ("submitted-at", job.submitted_at),
        ("started-at", job.started_at),
        ("available-at", job.available_at),
        ("finished-at", job.finished_at),
    ] {
        add(name, time.map(|time| TIME.timestamp_to_string(&time)).into());
    }
    object.into()
}

/// One sentence; two if what is known may no longer be so.
fn message(view: &JobView) -> String {
    match &view.stale {
        Some(reason) => format!("{reason}; what follows may have changed: {}", view.job.message),
        None => view.job.message.clone(),
    }
}

/// Forwardings are shown while users can connect; the last known ones stay when all is over.
fn services(job: &Job) -> Value {
    match job.state {
        State::Available | State::Finished => json!(job.services),
        _ => json!([]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_body_is_named() {
        let cases = [
            ("", "the body: EOF"),
            ("[]", "the body: it must be a JSON object"),
            (r#" ["alice","t",{}]"#, "the body: it must be a JSON object"),
            ("7", "the body: it must be a JSON object"),
            ("\u{feff}{}", "the body: it must be a JSON object"),
            (r#"{"uid":"a","template-name":"t","variables":{"x":"a","y":"","x":"b"}}"#, r#"the variable "x" is there twice"#),
            (r#"{"uid":"a","template-name":"t","variables":{"x":"a","\u0078":"a"}}"#, r#"the variable "x" is there twice"#),
            (r#"{"uid":"a","template-name":"t","variables":[]}"#, "variables: invalid type: sequence"),
            (r#"{"uid":"a"}"#, "missing field `template-name`"),
            (r#"{"uid":7,"template-name":"t"}"#, "uid: invalid type"),
            (r#"{"uid":"a","template-name":"t","nodes":1}"#, "unknown field `nodes`"),
            (r#"{"uid":"a","template-name":"t","variables":{"n":2}}"#, "variables.n: invalid type"),
            (r#"{"uid":"a","template-name":"t"} x"#, "behind the JSON object"),
            (r#"{"uid":"a","uid":"b","template-name":"t"}"#, "duplicate field `uid`"),
        ];
        for (body, expected) in cases {
            let message = read_job(body.as_bytes()).unwrap_err().message;
            assert!(message.contains(expected), "{body}: {message}");
        }
    }

    #[test]
    fn a_job_object_has_every_member_that_front_ends_rely_on_and_no_token() {
        let job =
            Job { id: 17, token: Some("secret".into()), submitted_at: "1970-01-01T00:00:00.999Z".parse().ok(), ..Job::default() };
        let object = job_object(&JobView { job, observed_at: None, stale: None });
        for member in ["job-id", "batch-script", "uid", "state", "services", "details", "scheduler-job-id", "outcome", "message"]
        {
            assert!(object.get(member).is_some(), "{member}");
        }
        assert_eq!(object["job-id"], "17");
        assert_eq!(object["submitted-at"], "1970-01-01T00:00:00Z");
        assert!(!object.to_string().contains("secret"));
    }

    #[test]
    fn only_json_is_json() {
        assert!(is_json("application/json; charset=utf-8") && is_json("Application/JSON") && !is_json("text/plain"));
    }
}
