use super::*;
use crate::error::ErrorKind;
use proptest::prelude::*;

const BUILT_INS: BuiltIns =
    BuiltIns { job_id: 17, user: "ada", home: "/shared/home/ada", log: "/shared/home/ada/bwvisu-job-17.out" };

fn load_with(source: &str, partials: &[(&str, &str)]) -> Result<Template> {
    let find = |name: &TemplateName| {
        let found = partials.iter().find(|(known, _)| *known == name.as_str());
        found.map(|(_, source)| (*source).to_owned()).ok_or_else(|| Error::not_found("there is no such file"))
    };
    Template::load(&template_name("t.txt")?, source, &find, 100)
}

fn load(body: &str) -> Result<Template> {
    load_with(&format!("#!/bin/bash\n{body}"), &[])
}

fn variables(given: &[(&str, &str)]) -> BTreeMap<String, String> {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn render(body: &str, given: &[(&str, &str)]) -> Result<Rendered> {
    load(body)?.render(&variables(given), &BUILT_INS)
}

#[test]
fn a_template_is_filled_in_with_supplied_and_built_in_variables() {
    let body = "#SBATCH --nodes={{n}}\n#KEYHOLE-REQUEST-PORTS {{ports}}\necho {{bwvisu_job_id}} {{bwvisu_user}} {{bwvisu_home}} {{bwvisu_log}} {{a.b}}\n";
    let given = [("n", "2"), ("ports", "3"), ("a.b", "c"), ("unused", "x")];
    let script = "#!/bin/bash\n#SBATCH --nodes=2\n#KEYHOLE-REQUEST-PORTS 3\necho 17 ada /shared/home/ada /shared/home/ada/bwvisu-job-17.out c\n";
    assert_eq!(render(body, &given), Ok(Rendered { script: script.into(), ports: Some(3) }));
}

#[test]
fn what_a_template_asks_for_is_known_when_it_is_loaded() {
    let cases = [
        ("true\n", RequestedPorts::None),
        ("#KEYHOLE-REQUEST-PORTS 5\n", RequestedPorts::Number(5)),
        ("{{#x}}\n#KEYHOLE-REQUEST-PORTS 5\n{{/x}}\n", RequestedPorts::Number(5)),
        ("#KEYHOLE-REQUEST-PORTS {{n}}\n", RequestedPorts::FromVariables),
        ("{{> ports}}\n", RequestedPorts::Number(7)),
    ];
    for (body, expected) in cases {
        let template = load_with(&format!("#!/bin/bash\n{body}"), &[("ports", "#KEYHOLE-REQUEST-PORTS 7\n")]).expect(body);
        assert_eq!(template.requested_ports, expected, "{body:?}");
    }
}

#[test]
fn variables_are_listed_by_whether_every_job_needs_them() {
    let body = "{{a}} {{bwvisu_user}} {{#b}}{{c}}{{a}}{{.}}{{/b}}{{^d}}{{>p}}{{/d}} {{>q}}";
    let template = load_with(&format!("#!/bin/bash\n{body}"), &[("p", "{{e}}{{>p}}"), ("q", "{{f.g}}")]).expect("loads");
    assert_eq!(template.required().iter().map(String::as_str).collect::<Vec<_>>(), ["a", "f.g"]);
    assert_eq!(template.optional().iter().map(String::as_str).collect::<Vec<_>>(), ["b", "c", "d", "e"]);
}

#[test]
fn a_broken_template_is_refused_when_it_is_loaded() {
    let partials = [
        ("two", "#KEYHOLE-REQUEST-PORTS 1\n"),
        ("late", "#SBATCH --time=1\n"),
        ("crlf", "x\r\n"),
        ("open", "{{#a}}"),
        ("up", "{{> ../x}}"),
        ("gone", "\n {{> away}}"),
    ];
    let cases = [
        ("echo", "template t.txt: the first line must begin with \"#!\""),
        ("#!/bin/bash\r\n", "template t.txt: line 1 has a Windows line end"),
        ("#!/bin/bash\n{{#a}}", "template t.txt:2:1: the section \"a\" is never closed"),
        ("#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 101\n", "a job may ask for 1 to 100 ports"),
        ("#!/bin/bash\n#KEYHOLE-REQUEST-PORTS 1\n{{> two}}\n", "there may be one ports line"),
        ("#!/bin/bash\n{{#a}}\n{{> two}}\n{{/a}}\n{{> two}}", "there may be one ports line"),
        ("#!/bin/bash\n#KEYHOLE-REQUEST-PORTS {{n}}\n{{> late}}\n", "stands after the ports line, where Slurm ignores it"),
        ("#!/bin/sh\n{{> two}}\n", "must name bash"),
        ("#!/bin/bash\n{{> crlf}}\n", "template crlf: line 1 has a Windows line end"),
        ("#!/bin/bash\n{{> open}}\n", "template open:1:1: the section \"a\" is never closed"),
        ("#!/bin/bash\n{{> up}}\n", "template up:1:1: the template name \"../x\" holds the character '/'"),
        ("#!/bin/bash\n{{> gone}}\n", "template gone:2:2: the partial away: there is no such file"),
        ("#!/bin/bash\n{{! bwvisu: allow-all }}\n", "template t.txt:2: after \"bwvisu:\" comes"),
        ("#!/bin/bash\n{{! bwvisu: allow-parent }}\n", "template t.txt:2: the name of a variable is missing"),
        ("#!/bin/bash\n{{! bwvisu: allow-parent a;b }}\n", "template t.txt:2: \"a;b\" is no name of a variable"),
    ];
    for (source, message) in cases {
        let error = load_with(source, &partials).expect_err(source);
        assert_eq!(error.kind, ErrorKind::Internal, "{source:?}");
        assert!(error.message.contains(message), "{source:?}: {}", error.message);
    }
}

#[test]
fn a_wrong_value_is_named_with_its_character() {
    let cases = [
        ("", "the variable v is empty"),
        ("a b", "the variable v holds the character ' '"),
        ("$(id)", "the variable v holds the character '$'"),
        ("a;b", "the variable v holds the character ';'"),
        ("a\nb", "the variable v holds the character '\\n'"),
        ("a\r", "the variable v holds the character '\\r'"),
        ("a\0", "the variable v holds the character '\\0'"),
        ("'", "the variable v holds the character '\\''"),
        ("{{x}}", "the variable v holds the character '{'"),
        ("#", "the variable v holds the character '#'"),
        ("ä", "the variable v holds the character '\\u{e4}'"),
        ("1٢", "the variable v holds the character '\\u{662}'"),
        ("-rf", "the variable v begins with '-'"),
        ("../x", "the variable v holds \"..\""),
        ("a/../x", "the variable v holds \"..\""),
        ("..", "the variable v holds \"..\""),
    ];
    for (value, message) in cases {
        let error = render("echo {{v}}\n", &[("v", value)]).expect_err(value);
        assert_eq!(error.kind, ErrorKind::BadInput, "{value:?}");
        assert!(error.message.starts_with(message), "{value:?}: {}", error.message);
    }
    let long = "x".repeat(1025);
    assert_eq!(
        render("", &[("v", &long)]).map_err(|error| error.message),
        Err("the variable v is longer than 1024 bytes".into())
    );
    for value in ["a", "0", "images/x-1_2.sif", "a..b", "a-", "/abs", ".x", &long[1..]] {
        assert!(render("echo {{v}}\n", &[("v", value)]).is_ok(), "{value:?}");
    }
}

#[test]
fn a_template_may_allow_a_leading_dash_or_a_parent_folder() {
    let body = "{{! bwvisu: allow-leading-dash d e }}\n{{! bwvisu: allow-parent p }}\n{{d}} {{p}} {{e}}\n";
    assert!(render(body, &[("d", "-1"), ("p", "../x"), ("e", "-")]).is_ok());
    assert!(render(body, &[("d", "-1"), ("p", "-1"), ("e", "1")]).is_err());
    assert!(render(body, &[("d", "../x"), ("p", "x"), ("e", "1")]).is_err());
}

#[test]
fn wrong_names_are_refused() {
    let long = "x".repeat(65);
    let cases = [
        ("", "must be of letters"),
        ("a b", "must be of letters"),
        ("a.", "must be of letters"),
        ("ä", "must be of letters"),
        (&long, "is longer than 64 bytes"),
        ("bwvisu_job_id", "is built in"),
        ("bwvisu_log", "is built in"),
    ];
    for (name, message) in cases {
        let error = render("", &[(name, "x")]).expect_err(name);
        assert!(error.kind == ErrorKind::BadInput && error.message.contains(message), "{name:?}: {}", error.message);
    }
    let error = render("", &[("a", "x"), ("a.b", "y")]).expect_err("both");
    assert_eq!(error.message, "the variable a.b cannot be both a value and the beginning of other names");
}

#[test]
fn a_missing_variable_is_the_callers_fault_and_is_named() {
    let error = render("{{#x}}{{y}}{{/x}}\necho {{number_of_nodes}}\n", &[]).expect_err("missing");
    assert_eq!(error.kind, ErrorKind::BadInput);
    assert_eq!(error.message, "the template t.txt needs the variable number_of_nodes, which was not supplied");
    assert_eq!(error.detail.as_deref(), Some("t.txt:3:6: there is no variable \"number_of_nodes\""));
}

#[test]
fn what_variables_decide_is_checked_again() {
    let cases = [
        ("#KEYHOLE-REQUEST-PORTS {{n}}\n", "0", "a job may ask for 1 to 100 ports"),
        ("#KEYHOLE-REQUEST-PORTS {{n}}\n", "many", "a whole number must follow"),
        ("#KEYHOLE-REQUEST-{{n}} 1\n#KEYHOLE-REQUEST-PORTS 1\n", "PORTS", "there may be one ports line"),
        ("#KEYHOLE-REQUEST-PORTS 1\n#SB{{n}} --time=1\n", "ATCH", "stands after the ports line"),
    ];
    for (body, value, message) in cases {
        let error = render(body, &[("n", value)]).expect_err(body);
        assert!(error.kind == ErrorKind::BadInput && error.message.contains(message), "{body:?}: {}", error.message);
    }
}

#[test]
fn a_built_in_that_would_break_the_script_is_our_own_fault() {
    let home = BuiltIns { home: "/my home", ..BUILT_INS };
    let error = load("").and_then(|template| template.render(&BTreeMap::new(), &home)).expect_err("a blank");
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.starts_with("the built-in variable bwvisu_home holds the character ' '"), "{}", error.message);
}

proptest! {
    #[test]
    fn whatever_is_accepted_is_one_plain_word(value in "\\PC{0,12}|[a-z./_-]{0,12}|(?s).{0,4}") {
        if let Ok(rendered) = render("{{v}}\n", &[("v", &value)]) {
            prop_assert_eq!(rendered.script, format!("#!/bin/bash\n{value}\n"));
            prop_assert!(value.bytes().all(|b| b.is_ascii_alphanumeric() || b"./-_".contains(&b)) && !value.starts_with('-'));
        }
    }
}
