//! `who`: whose job had an external port of a gateway, over the API.

use super::client::{ApiArgs, ApiClient};
use crate::error::{Error, Result};
use clap::Args;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

/// What is asked.
#[derive(Args)]
pub struct WhoArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The gateway, by the address that users connect to or by its internal one, and the port
    #[arg(value_name = "GATEWAY:PORT")]
    place: Place,
    /// When: RFC 3339 (2026-11-22T08:30:00Z), or a time of this machine's clock ("2026-11-22 09:30"); now without it
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An external port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    gateway: String,
    port: u16,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not GATEWAY:PORT, such as 203.0.113.1:50017");
        let (gateway, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        // What stands in a query unescaped; names and addresses have nothing else.
        let good = !gateway.is_empty() && gateway.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte));
        let port = port.parse().map_err(|_| wrong())?;
        good.then(|| Self { gateway: gateway.to_owned(), port }).ok_or_else(wrong)
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    time_in(text, TimeZone::system())
}

fn time_in(text: &str, zone: TimeZone) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let local = text.parse::<DateTime>().and_then(|time| time.to_zoned(zone));
    local.map(|time| time.timestamp()).map_err(|_| "it is neither RFC 3339 nor a time such as \"2026-11-22 09:30\"".to_owned())
}

/// Prints who had it; exit code 1 if nobody is known.
pub fn run(named: Option<&Path>, args: &WhoArgs) -> Result<ExitCode> {
    let Place { gateway, port } = &args.place;
    let at = args.at.map(|at| format!("&at={at}")).unwrap_or_default();
    let answer = ApiClient::new(named, &args.api)?.call("GET", &format!("/cluster/who?gateway={gateway}&port={port}{at}"))?;
    let jobs = answer["jobs"].as_array().ok_or_else(|| Error::bad_gateway("the API named no jobs"))?;
    if args.json {
        println!("{answer:#}");
    } else {
        jobs.iter().for_each(|job| println!("{}", sentence(job, *port)));
        if jobs.is_empty() {
            println!("{}", nobody(&answer));
        }
    }
    Ok(if jobs.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn sentence(job: &Value, port: u16) -> String {
    let word = |name: &str, otherwise: &str| job[name].as_str().unwrap_or(otherwise).to_owned();
    let given_up = job["given-up"].as_str().map(|time| format!(" (given up at {time})")).unwrap_or_default();
    format!(
        "job {} of {}: {}:{port} led to {}:{} from {} to {}{given_up}",
        word("job-id", "?"),
        word("user", "a user who is not known any more"),
        word("external-ip", &word("gateway", "?")),
        word("target", "?"),
        job["internal-port"],
        word("from", "a time before the trail"),
        word("until", "still"),
    )
}

fn nobody(answer: &Value) -> String {
    let word = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    let place = format!("{}:{}", word("gateway"), answer["port"]);
    let (at, since) = (word("at"), word("known-since"));
    match answer["known-since"].as_str() {
        None => format!("{place}: nobody is known to have had it at {at}; the trail has not begun yet"),
        Some(_) if at < since => format!("{place}: nobody is known to have had it at {at}; the trail goes back to {since} only"),
        Some(_) => format!("{place}: nobody had it at {at}; the trail goes back to {since}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_place_is_a_gateway_and_a_port() {
        let place = "vis1.example.org:50017".parse::<Place>().unwrap();
        assert_eq!(place, Place { gateway: "vis1.example.org".into(), port: 50017 });
        for bad in ["", "10.0.0.1", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:70000", ":5", "a b:5", "a&port=1:5"] {
            assert!(bad.parse::<Place>().unwrap_err().contains("GATEWAY:PORT"), "{bad}");
        }
    }

    #[test]
    fn times_are_those_of_a_zone_or_of_this_machines_clock() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let expected: Timestamp = "2026-07-01T08:30:00Z".parse().unwrap();
        for text in ["2026-07-01T08:30:00Z", "2026-07-01T10:30:00+02:00", "2026-07-01T10:30:00", "2026-07-01 10:30"] {
            assert_eq!(time_in(text, zone.clone()), Ok(expected), "{text}");
        }
        for bad in ["", "yesterday", "10:30", "2026-13-01 10:30"] {
            assert!(time_in(bad, zone.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_is_one_sentence() {
        let job = json!({"job-id": "17", "user": "alice", "external-ip": "203.0.113.1", "gateway": "10.0.0.1", "target": "c0",
            "internal-port": 5900, "from": "F", "given-up": null, "until": null});
        assert_eq!(sentence(&job, 50001), "job 17 of alice: 203.0.113.1:50001 led to c0:5900 from F to still");
        let ended =
            json!({"job-id": "17", "user": null, "gateway": "10.0.0.1", "internal-port": 5900, "given-up": "G", "until": "U"});
        let expected = "job 17 of a user who is not known any more: 10.0.0.1:1 led to ?:5900 from a time before the trail to U (given up at G)";
        assert_eq!(sentence(&ended, 1), expected);
        let asked = |at: &str| json!({"gateway": "g", "port": 1, "at": at, "known-since": "2026-11-22T00:00:00.000Z"});
        assert!(nobody(&asked("2026-11-21T00:00:00.000Z")).ends_with("goes back to 2026-11-22T00:00:00.000Z only"));
        assert!(nobody(&asked("2026-11-23T00:00:00.000Z")).contains("nobody had it"));
        assert!(nobody(&json!({"gateway": "g", "port": 1, "at": "x", "known-since": null})).contains("not begun"));
    }
}
