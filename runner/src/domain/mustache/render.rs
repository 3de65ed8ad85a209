//! Tree and data → text.

use super::{MAX_OUTPUT_BYTES, MAX_PARTIAL_DEPTH, Mustache, Node, Partials, Position, TemplateError};
use serde_json::Value;

/// Nodes visited at most; a template of an ordinary length has some hundred. Output alone is no measure: partials that include each
/// other twice show nothing, 2^32 times.
const MAX_STEPS: usize = 100_000;
/// Sections and partials within each other, together: what the thread's stack must carry.
const MAX_DEPTH: usize = 128;

pub(super) fn render(template: &Mustache, data: &Value, partials: Partials) -> Result<String, TemplateError> {
    let mut renderer = Renderer { partials, output: String::new(), steps: 0, partial_depth: 0, depth: 0 };
    renderer.nodes(&Part { template, indent: "" }, &template.nodes, &mut vec![data])?;
    Ok(renderer.output)
}

struct Renderer<'a> {
    partials: Partials<'a>,
    output: String,
    steps: usize,
    partial_depth: usize,
    depth: usize,
}

/// The template or partial that is being rendered, and what goes before each of its lines.
struct Part<'p> {
    template: &'p Mustache,
    indent: &'p str,
}

impl Renderer<'_> {
    fn nodes(&mut self, part: &Part, nodes: &[Node], stack: &mut Vec<&Value>) -> Result<(), TemplateError> {
        self.depth += 1;
        self.check(part)?;
        for node in nodes {
            self.steps += 1;
            self.node(part, node, stack)?;
            self.check(part)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn node(&mut self, part: &Part, node: &Node, stack: &mut Vec<&Value>) -> Result<(), TemplateError> {
        match node {
            Node::LineStart => self.output.push_str(part.indent),
            Node::Text(text) => self.output.push_str(text),
            Node::Variable { name, at } => return self.variable(part, name, *at, stack),
            Node::Section { name, inverted: true, children } => {
                if !lookup(stack, name).is_some_and(is_true) {
                    return self.nodes(part, children, stack);
                }
            }
            Node::Section { name, inverted: false, children } => return self.section(part, name, children, stack),
            Node::Partial { name, at, indent } => return self.partial(part, (name, *at), indent.as_deref(), stack),
        }
        Ok(())
    }

    fn variable(&mut self, part: &Part, name: &str, at: Position, stack: &[&Value]) -> Result<(), TemplateError> {
        match lookup(stack, name) {
            Some(Value::String(text)) => self.output.push_str(text),
            Some(Value::Null) => (),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => self.output.push_str(&value.to_string()),
            Some(_) => return Err(part.template.error(at, format!("\"{name}\" is a list or an object, which cannot be shown"))),
            None => {
                let error = part.template.error(at, format!("there is no variable \"{name}\""));
                return Err(TemplateError { missing: Some(name.to_owned()), ..error });
            }
        }
        Ok(())
    }

    fn section(&mut self, part: &Part, name: &str, children: &[Node], stack: &mut Vec<&Value>) -> Result<(), TemplateError> {
        let Some(value) = lookup(stack, name).filter(|value| is_true(value)) else { return Ok(()) };
        let each = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in each {
            self.steps += 1;
            stack.push(value);
            self.nodes(part, children, stack)?;
            stack.pop();
        }
        Ok(())
    }

    fn partial(
        &mut self,
        part: &Part,
        (name, at): (&str, Position),
        indent: Option<&str>,
        stack: &mut Vec<&Value>,
    ) -> Result<(), TemplateError> {
        let partial = (self.partials)(name).map_err(|reason| part.template.error(at, reason))?;
        if self.partial_depth == MAX_PARTIAL_DEPTH {
            return Err(part
                .template
                .error(at, format!("more than {MAX_PARTIAL_DEPTH} partials within each other, \"{name}\" the last")));
        }
        let indent = indent.map_or(String::new(), |own| format!("{}{own}", part.indent));
        self.partial_depth += 1;
        self.nodes(&Part { template: &partial, indent: &indent }, &partial.nodes, stack)?;
        self.partial_depth -= 1;
        Ok(())
    }

    fn check(&self, part: &Part) -> Result<(), TemplateError> {
        let message = if self.output.len() > MAX_OUTPUT_BYTES {
            format!("the text grows beyond {MAX_OUTPUT_BYTES} bytes")
        } else if self.depth > MAX_DEPTH {
            format!("sections and partials lie more than {MAX_DEPTH} deep within each other")
        } else if self.steps > MAX_STEPS {
            "sections and partials repeat each other too often".to_owned()
        } else {
            return Ok(());
        };
        Err(part.template.error(Position { line: 1, column: 1 }, message))
    }
}

/// The value of a name: its first part is looked for from the innermost context outwards, the others strictly within that.
fn lookup<'v>(stack: &[&'v Value], name: &str) -> Option<&'v Value> {
    if name == "." {
        return stack.last().copied();
    }
    let mut parts = name.split('.');
    let first = parts.next()?;
    let value = stack.iter().rev().find_map(|context| context.as_object()?.get(first))?;
    parts.try_fold(value, |value, part| value.as_object()?.get(part))
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}
