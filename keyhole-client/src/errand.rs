//! What one run of the program is about: the arguments and the job's environment, checked and signed.

use crate::arguments::{Arguments, Server};
use crate::failure::{Exit, Failure};
use alloc::string::String;
use alloc::vec::Vec;
use keyhole_protocol::{Confirm, MAX_BODY, Nonce, Request, Token, decimal, nodelist};

/// The environment of a job, but for its token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variables<'a> {
    /// `SLURM_JOB_NODELIST`
    pub job_node_list: Option<&'a str>,
    /// `SLURM_NODELIST`, its name in older days.
    pub node_list: Option<&'a str>,
    /// `SLURM_RESTART_COUNT`
    pub restart_count: Option<&'a str>,
}

/// All that is needed to ask.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Whom to ask; one or more.
    pub servers: Vec<Server>,
    /// Milliseconds after which to give up.
    pub patience: u64,
    /// Signs and checks.
    pub token: Token,
    /// In every answer that is for us.
    pub nonce: Nonce,
    /// How many ports a grant must have.
    pub ports: u32,
    /// The same in every attempt.
    pub request: String,
    /// Sent once, at the end.
    pub confirm: String,
}

impl Errand {
    /// Puts the errand together.
    ///
    /// # Errors
    /// When the environment is not that of a job.
    pub fn new(arguments: Arguments, token: &Token, variables: &Variables<'_>, nonce: Nonce) -> Result<Self, Failure> {
        let Arguments { job, ports, servers, give_up_after } = arguments;
        let run = run(variables.restart_count)?;
        let nodes = nodes(variables)?;
        let request = Request { job, run, nonce, ports, nodes }.to_body();
        if request.len() > MAX_BODY {
            return Err(node_list(&["the names of the nodes are too long for one request"]));
        }
        Ok(Errand {
            servers,
            patience: give_up_after * 1000,
            token: token.clone(),
            nonce,
            ports,
            request,
            confirm: Confirm { job, run, nonce }.to_body(),
        })
    }
}

/// Reads `KEYHOLE_TOKEN`.
///
/// # Errors
/// When it is missing or no token; the message does not repeat it.
pub fn token(value: Option<&str>) -> Result<Token, Failure> {
    let message = match value.map(Token::from_hex) {
        Some(Ok(token)) => return Ok(token),
        Some(Err(_)) => "KEYHOLE_TOKEN is not 64 lowercase hexadecimal digits",
        None => "KEYHOLE_TOKEN is not set",
    };
    Err(Failure::new(Exit::Environment, &[message]))
}

fn run(restart_count: Option<&str>) -> Result<u32, Failure> {
    let count = restart_count.unwrap_or("0");
    match decimal::parse(count, u32::MAX.into()) {
        Some(run) => Ok(run as u32),
        None => Err(Failure::new(Exit::Environment, &["SLURM_RESTART_COUNT is no number: \"", shown(count), "\""])),
    }
}

/// The nodes, each once: a node that is listed twice is still one node.
fn nodes(variables: &Variables<'_>) -> Result<Vec<String>, Failure> {
    let (name, list) = match (variables.job_node_list, variables.node_list) {
        (Some(list), _) => ("SLURM_JOB_NODELIST", list),
        (None, Some(list)) => ("SLURM_NODELIST", list),
        (None, None) => return Err(node_list(&["neither SLURM_JOB_NODELIST nor SLURM_NODELIST is set: is this a job?"])),
    };
    let mut nodes: Vec<String> = Vec::new();
    for node in nodelist::expand(list).map_err(|error| bad_list(name, list, error))? {
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    Ok(nodes)
}

fn bad_list(name: &str, list: &str, error: nodelist::NodeListError) -> Failure {
    let mut position = String::new();
    decimal::push(&mut position, error.position() as u64);
    node_list(&[name, ": ", error.what(), ", at byte ", &position, " of \"", shown(list), "\""])
}

fn node_list(parts: &[&str]) -> Failure {
    Failure::new(Exit::NodeList, parts)
}

/// The beginning of a value, for a message.
fn shown(value: &str) -> &str {
    value.char_indices().nth(100).and_then(|(end, _)| value.get(..end)).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{self, Invocation};

    fn errand(variables: Variables<'_>) -> Result<Errand, Failure> {
        let words = ["--job", "17", "--ports", "2", "--server", "10.0.0.1:80"];
        match arguments::parse(&words) {
            Ok(Invocation::Ask(arguments)) => Errand::new(arguments, &Token::from_bytes([1; 32]), &variables, Nonce([0xab; 16])),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_request_names_job_run_ports_and_nodes() {
        let nonce = "ab".repeat(16);
        let cases = [
            (Variables { job_node_list: Some("n[1-2]"), ..Variables::default() }, "0", "node n1\nnode n2\n"),
            (Variables { node_list: Some("c0"), restart_count: Some("3"), ..Variables::default() }, "3", "node c0\n"),
            (Variables { job_node_list: Some("a"), node_list: Some("b"), restart_count: None }, "0", "node a\n"),
            (Variables { job_node_list: Some("b,a,b,b"), ..Variables::default() }, "0", "node b\nnode a\n"),
        ];
        for (variables, run, nodes) in cases {
            let errand = errand(variables).unwrap();
            let opening = ["keyhole 1\njob 17\nrun ", run, "\nnonce ", &nonce, "\n"].concat();
            assert_eq!(errand.request, [&opening, "ports 2\n", nodes].concat());
            assert_eq!(errand.confirm, opening);
        }
    }

    #[test]
    fn an_environment_that_is_no_jobs_is_refused() {
        let list = |list| Variables { job_node_list: Some(list), ..Variables::default() };
        let count = |count| Variables { job_node_list: Some("n"), restart_count: Some(count), ..Variables::default() };
        let long = "n,".repeat(60);
        let long_message = ["SLURM_JOB_NODELIST: a node name is missing, at byte 120 of \"", &"n,".repeat(50), "\""].concat();
        for (variables, exit, message) in [
            (Variables::default(), Exit::NodeList, "neither SLURM_JOB_NODELIST nor SLURM_NODELIST is set: is this a job?"),
            (list(""), Exit::NodeList, "SLURM_JOB_NODELIST: a node name is missing, at byte 0 of \"\""),
            (list("n[1-"), Exit::NodeList, "SLURM_JOB_NODELIST: expected a number, at byte 4 of \"n[1-\""),
            (list(&long), Exit::NodeList, long_message.as_str()),
            (count("x\n"), Exit::Environment, "SLURM_RESTART_COUNT is no number: \"x \""),
            (count(""), Exit::Environment, "SLURM_RESTART_COUNT is no number: \"\""),
            (count("4294967296"), Exit::Environment, "SLURM_RESTART_COUNT is no number: \"4294967296\""),
        ] {
            let failure = errand(variables).map(|errand| errand.request).unwrap_err();
            assert_eq!(failure, Failure { exit, message: message.into() });
        }
    }

    #[test]
    fn a_list_of_names_that_fill_more_than_a_body_is_refused() {
        let label = "x".repeat(63);
        let long = [&label, ".", &label, ".", &label, ".n[1000-5095]-", &"y".repeat(55)].concat();
        let failure = errand(Variables { job_node_list: Some(&long), ..Variables::default() }).map(|_| ()).unwrap_err();
        assert_eq!(failure.message, "the names of the nodes are too long for one request");
    }

    #[test]
    fn a_bad_token_is_not_repeated() {
        assert!(token(Some(&"0f".repeat(32))).is_ok());
        for (value, message) in [
            (None, "KEYHOLE_TOKEN is not set"),
            (Some(""), "KEYHOLE_TOKEN is not 64 lowercase hexadecimal digits"),
            (Some("secret"), "KEYHOLE_TOKEN is not 64 lowercase hexadecimal digits"),
        ] {
            let failure = Failure { exit: Exit::Environment, message: message.into() };
            assert_eq!(token(value), Err(failure));
        }
    }
}
