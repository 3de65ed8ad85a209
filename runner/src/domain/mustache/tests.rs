use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const NAME: &str = "main.txt";

/// Renders with the partials given as (name, source).
fn render(source: &str, data: Value, partials: &[(&str, &str)]) -> Result<String, TemplateError> {
    let find = |name: &str| {
        let (_, source) = partials.iter().find(|(known, _)| *known == name).ok_or(format!("there is no partial \"{name}\""))?;
        Mustache::parse(name, source).map(Arc::new).map_err(|error| error.to_string())
    };
    Mustache::parse(NAME, source)?.render(&data, &find)
}

#[test]
fn each_kind_of_tag_does_what_the_specification_says() {
    let data = || {
        json!({
            "name": "a<b>&\"c\"", "n": 7, "f": 2.5, "yes": true, "no": false, "null": null, "empty": "", "none": [],
            "list": [{"x": "1"}, {"x": "2"}], "words": ["p", "q"], "deep": {"er": {"x": "d"}}, "x": "outer",
        })
    };
    let cases = [
        ("plain", "no tags }} { }", "no tags }} { }"),
        ("nothing is escaped", "{{name}} {{{name}}} {{&name}}", "a<b>&\"c\" a<b>&\"c\" a<b>&\"c\""),
        ("padding", "{{ n }}{{{ n }}}{{& n }}", "777"),
        ("numbers and booleans", "{{n}} {{f}} {{yes}} {{no}}", "7 2.5 true false"),
        ("null shows nothing", "({{null}})", "()"),
        ("dotted", "{{deep.er.x}}", "d"),
        ("section over an object", "{{#deep}}{{er.x}}{{x}}{{/deep}}", "douter"),
        ("section over a list", "{{#list}}[{{x}}]{{/list}}", "[1][2]"),
        ("implicit iterator", "{{#words}}<{{.}}>{{/words}}", "<p><q>"),
        ("section over a text", "{{#name}}{{n}}{{/name}}", "7"),
        (
            "false sections",
            "{{#no}}a{{/no}}{{#null}}b{{/null}}{{#empty}}c{{/empty}}{{#none}}d{{/none}}{{#absent}}{{e}}{{/absent}}",
            "",
        ),
        (
            "inverted",
            "{{^no}}a{{/no}}{{^null}}b{{/null}}{{^empty}}c{{/empty}}{{^none}}d{{/none}}{{^absent}}e{{/absent}}",
            "abcde",
        ),
        ("inverted over something", "{{^name}}a{{/name}}{{^list}}b{{/list}}{{^n}}c{{/n}}", ""),
        ("comment", "a{{! b\n c }}d", "ad"),
        ("standalone comment", "a\n  {{! b }}  \nc", "a\nc"),
        ("standalone section", "a\n {{#yes}}\n b\n {{/yes}}\nc\n", "a\n b\nc\n"),
        ("two tags in a line are not standalone", "{{#yes}}{{/yes}}\nx", "\nx"),
        ("a variable is never standalone", " {{n}}\n", " 7\n"),
        ("set delimiters", "{{=<% %>=}}<% n %> {{n}} <%{n}%>", "7 {{n}} 7"),
        ("one delimiter for both", "{{=| |=}}|n|", "7"),
        ("delimiters back", "{{=| |=}}\n|={{ }}=|\n{{n}}", "7"),
        ("shell text that looks a little like tags", "${A[0]} ${B:-{}} {{n}}", "${A[0]} ${B:-{}} 7"),
        ("empty", "", ""),
    ];
    for (case, source, expected) in cases {
        assert_eq!(render(source, data(), &[]).as_deref(), Ok(expected), "{case}");
    }
}

#[test]
fn partials_are_indented_only_where_they_stand_alone() {
    let partials = [("p", "1\n{{v}}\n\n2"), ("outer", "o\n  {{>p}}\n"), ("inline", "a {{>p}} b\n"), ("delims", "{{=| |=}}|v|\n")];
    let cases = [
        ("{{>p}}!", "1\nx\n\n2!"),
        ("  {{>p}}\nend\n", "  1\n  x\n  \n  2end\n"),
        (" {{>outer}}", " o\n   1\n   x\n   \n   2"),
        (" {{>inline}}", " a 1\nx\n\n2 b\n"),
        ("{{>delims}}{{v}}", "x\nx"),
        ("{{#list}}\n  {{> q }}\n{{/list}}", "  <1>\n  <2>\n"),
    ];
    for (source, expected) in cases {
        let partials = [&partials[..], &[("q", "<{{.}}>\n")]].concat();
        assert_eq!(render(source, json!({"v": "x", "list": [1, 2]}), &partials).as_deref(), Ok(expected), "{source:?}");
    }
}

#[test]
fn a_value_with_tags_or_newlines_is_only_text() {
    let data = json!({"v": "{{w}}\n{{#x}}", "w": "never"});
    assert_eq!(render("  {{>p}}", data, &[("p", "{{v}}\n")]).as_deref(), Ok("  {{w}}\n{{#x}}\n"));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let deep = |n: usize| format!("{}{}", "{{#a}}".repeat(n), "{{/a}}".repeat(n));
    let cases: Vec<(String, &str)> = vec![
        ("a\nb {{name".into(), "main.txt:2:3: the tag that begins here is not closed: \"}}\" is missing"),
        ("{{{name}}".into(), "main.txt:1:1: the tag that begins here is not closed: \"}}}\" is missing"),
        ("{{=<% %>}}".into(), "main.txt:1:1: the tag that begins here is not closed: \"=}}\" is missing"),
        ("{{=<%=}}".into(), "main.txt:1:1: new delimiters are two words without \"=\", as in {{=<% %>=}}"),
        ("ä{{#a}}\n".into(), "main.txt:1:2: the section \"a\" is never closed: {{/a}} is missing"),
        ("{{/a}}".into(), "main.txt:1:1: this closes the section \"a\", but no section is open"),
        ("{{#a}}\n{{/b}}".into(), "main.txt:2:1: this closes the section \"b\", but \"a\" is open, since line 1"),
        ("{{}}".into(), "main.txt:1:1: \"\" is no name: it is made of letters, digits, \"_\" and \"-\", with dots between"),
        ("{{a b}}".into(), "main.txt:1:1: \"a b\" is no name: it is made of letters, digits, \"_\" and \"-\", with dots between"),
        (
            "{{a..b}}".into(),
            "main.txt:1:1: \"a..b\" is no name: it is made of letters, digits, \"_\" and \"-\", with dots between",
        ),
        ("{{$a}}".into(), "main.txt:1:1: \"$a\" is no name: it is made of letters, digits, \"_\" and \"-\", with dots between"),
        ("{{>a b}}".into(), "main.txt:1:1: \"a b\" is no name: it is made of a file's name without blanks"),
        ("{{! two\nlines }}{{x}}".into(), "main.txt:2:9: there is no variable \"x\""),
        ("{{obj.x.y}}".into(), "main.txt:1:1: there is no variable \"obj.x.y\""),
        ("{{obj}}".into(), "main.txt:1:1: \"obj\" is a list or an object, which cannot be shown"),
        ("\n {{> nowhere}}".into(), "main.txt:2:2: there is no partial \"nowhere\""),
        ("{{> hole}}".into(), "hole:2:1: there is no variable \"x\""),
        ("{{> broken}}".into(), "main.txt:1:1: broken:1:1: the section \"a\" is never closed: {{/a}} is missing"),
        ("{{> self}}".into(), "self:1:1: more than 32 partials within each other, \"self\" the last"),
        (deep(33), "main.txt:1:193: more than 32 sections within each other"),
        ("{{> twice}}".into(), "more than 32 partials within each other"),
        ("{{> fan0}}".into(), "sections and partials repeat each other too often"),
        ("{{> long}}".into(), "the text grows beyond 1048576 bytes"),
    ];
    let fans: Vec<(String, String)> =
        (0..31).map(|i| (format!("fan{i}"), format!("{{{{>fan{0}}}}}{{{{>fan{0}}}}}", i + 1))).collect();
    let long = format!("{}{}{}", "{{#ten}}".repeat(4), "x".repeat(200), "{{/ten}}".repeat(4));
    let mut partials =
        vec![("hole", "\n{{x}}"), ("broken", "{{#a}}"), ("self", "{{>self}}"), ("twice", "{{>twice}}{{>twice}}"), ("fan31", "")];
    partials.extend(fans.iter().map(|(name, source)| (name.as_str(), source.as_str())));
    partials.push(("long", &long));
    for (source, expected) in cases {
        let data = json!({"obj": {"x": {}}, "ten": vec![1; 10]});
        let error = render(&source, data, &partials).expect_err(&source).to_string();
        assert!(error.contains(expected), "{source:?}\n  said: {error}\n  not:  {expected}");
    }
    assert_eq!(render(&deep(32), json!({"a": true}), &[]).as_deref(), Ok(""));
}

#[test]
fn a_missing_variable_is_told_from_a_mistake_in_the_template() {
    let missing = |source| render(source, json!({"a": {}}), &[]).map_err(|error| error.missing);
    assert_eq!(missing("{{a.b}}"), Err(Some("a.b".into())));
    assert_eq!(missing("{{a}}"), Err(None));
    assert_eq!(missing("{{#nothing}}{{x}}{{/nothing}}"), Ok(String::new()));
}

#[test]
fn comments_can_be_read() {
    let template = Mustache::parse(NAME, "a\n{{! bwvisu: x }}\n{{!}}").expect("parses");
    assert_eq!(template.comments()[0], Comment { text: "bwvisu: x".into(), line: 2 });
    assert_eq!(template.comments()[1].text, "");
}

/// Small pieces in any order find more than arbitrary text does.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{{", "}}", "{", "}", "{{{", "}}}", "#", "/", "^", "!", ">", "&", "=", "{{=", "=}}", "| |", "|", "a", "b", ".", " ",
        "\n", "\r\n", "ä", "{{a}}", "{{#a}}", "{{/a}}", "{{^b}}", "{{/b}}", "{{>p}}", "{{>q}}", "{{.}}", "{{a.b}}", "\0",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_template_makes_it_panic(source in prop_oneof![pieces(), any::<String>()], p in pieces(), q in pieces()) {
        let data = json!({"a": {"b": [1, "x", null, {"a": "y"}]}, "b": [[], [[]], "z"]});
        if let Ok(text) = render(&source, data, &[("p", &p), ("q", &q)]) {
            prop_assert!(text.len() <= MAX_OUTPUT_BYTES);
        }
    }

    #[test]
    fn text_without_tags_stays_as_it_is(source in "[^{]*") {
        prop_assert_eq!(render(&source, Value::Null, &[]), Ok(source));
    }
}
