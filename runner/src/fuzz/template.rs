//! Templates: outline, variables, ports line, and the batch script that comes out.

use super::mustache::{TOKENS, parts};
use super::{Outcome, Target, text};
use crate::domain::batch_script::{Clients, KeyholeSetup, batch_script};
use crate::domain::template::{BuiltIns, Rendered, Template, find_ports_line, template_name};
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

const MAX_PORTS: u32 = 100;
/// The part of an input that gives variables, as lines `name=value`.
const VARIABLES: &str = "variables";
const SERVERS: &[SocketAddr] = &[SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80)];

static CLIENTS: LazyLock<Clients> = LazyLock::new(|| Clients::new(vec![("x86_64".into(), vec![7; 64])]).expect("packs"));

pub(super) const TARGET: Target = Target {
    name: "template",
    tokens: &{
        let mut tokens = [""; TOKENS.len() + 16];
        let mut at = 0;
        while at < TOKENS.len() {
            tokens[at] = TOKENS[at];
            at += 1;
        }
        let own = [
            "#!/bin/bash\n",
            "#!/bin/sh\n",
            "#KEYHOLE-REQUEST-PORTS 1\n",
            "#KEYHOLE-REQUEST-PORTS {{n}}\n",
            "#KEYHOLE-REQUEST-PORTS",
            "#SBATCH --time=1\n",
            "#SBATCH --array=1-3\n",
            "{{! bwvisu: allow-parent x }}",
            "{{! bwvisu: allow-leading-dash x }}",
            "{{bwvisu_home}}",
            "%%% variables\n",
            "x=-1\n",
            "x=../y\n",
            "n=5\n",
            "x=a;b\n",
            "a.b=c\n",
        ];
        let mut at = 0;
        while at < own.len() {
            tokens[TOKENS.len() + at] = own[at];
            at += 1;
        }
        tokens
    },
    check,
};

fn check(input: &[u8]) -> Outcome {
    let text = match text(input) {
        Ok(text) => text,
        Err(outcome) => return outcome,
    };
    let (main, mut partials) = parts(text);
    let given = variables(&partials.remove(VARIABLES).unwrap_or_default());
    let find = |name: &crate::domain::template::TemplateName| {
        partials.get(name.as_str()).cloned().ok_or_else(|| Error::not_found("there is no such file"))
    };
    let name = template_name("t.txt").expect("a name");
    let template = match Template::load(&name, &main, &find, MAX_PORTS) {
        Ok(template) => template,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Internal, "{error}");
            assert!(error.message.starts_with("template "), "it does not say where: {error}");
            return Outcome::refused(error);
        }
    };
    with_plain_values(&template);
    match render(&template, &given) {
        Err(error) => Outcome::refused(error),
        Ok(rendered) => {
            for (name, value) in &given {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./-_".contains(&byte);
                assert!(!value.is_empty() && value.bytes().all(plain), "{name}: {value:?} stands in a shell script");
            }
            Outcome::accepted(format_args!("{:?} {:?} {}", template.requested_ports, rendered.ports, given.len().min(5)))
        }
    }
}

fn variables(lines: &str) -> BTreeMap<String, String> {
    lines.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn render(template: &Template, given: &BTreeMap<String, String>) -> Result<Rendered> {
    let home = "/shared/home/ada";
    let rendered =
        template.render(given, &BuiltIns { job_id: 17, user: "ada", home, log: "/shared/home/ada/bwvisu-job-17.out" })?;
    assert_script(&rendered);
    Ok(rendered)
}

/// A front end that gives all that a template needs gets a script, or hears what is wrong with it; and what values hold never makes or
/// takes away lines.
fn with_plain_values(template: &Template) {
    let filled = |value: &str| template.required().iter().map(|name| (name.clone(), value.to_owned())).collect();
    let lines = |value: &str| match render(template, &filled(value)) {
        Ok(rendered) => Some(rendered.script.matches('\n').count()),
        Err(error) => {
            let needs =
                ["cannot be both", "with these variables", "is longer than", "needs the variable", "grows beyond", "must be of"];
            let known = error.kind == ErrorKind::Internal
                || needs.iter().any(|words| error.message.contains(words))
                || error.message.contains("is built in");
            assert!(known, "{error}");
            None
        }
    };
    if let (Some(one), Some(other)) = (lines("1"), lines("2")) {
        assert_eq!(one, other, "values change the number of lines");
    }
}

fn assert_script(rendered: &Rendered) {
    let Rendered { script, ports } = rendered;
    assert!(script.starts_with("#!") && !script.contains(['\r', '\0']), "{script:?}");
    assert!(ports.is_none_or(|ports| (1..=MAX_PORTS).contains(&ports)), "{ports:?}");
    let setup = KeyholeSetup { job_id: 17, token_hex: "0af1", servers: SERVERS, give_up_after_seconds: 60, clients: &CLIENTS };
    let made = batch_script(script, &setup, MAX_PORTS).expect("a script that was checked");
    let Some(line) = find_ports_line(script, MAX_PORTS).expect("was checked") else { return assert_eq!(made, *script) };
    assert!(
        made.starts_with(&script[..line.range.start]) && made.ends_with(&script[line.range.end..]),
        "more than the line changed"
    );
}
