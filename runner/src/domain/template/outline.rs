//! A template with its partials, seen at once and without data: its lines with gaps, and the variables that it uses.

use super::{PartialSources, broken, parse, script::GAP, template_name, variables::BUILT_INS};
use crate::domain::mustache::{MAX_OUTPUT_BYTES, Mustache, Node};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Files that one template may include, directly or not; and inclusions that an outline follows.
const MAX_PARTIALS: usize = 64;
const MAX_INCLUSIONS: usize = 1_000;

/// Variables by whether every job needs them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UsedVariables {
    pub(super) required: BTreeSet<String>,
    pub(super) optional: BTreeSet<String>,
}

/// What a template looks like before it is filled in: variables are gaps, each section is there once, whichever way it goes.
#[derive(Default)]
pub(super) struct Outline {
    pub(super) text: String,
    pub(super) used: UsedVariables,
}

/// Parses all that a template includes, directly or not.
pub(super) fn load_partials(main: &Mustache, sources: PartialSources) -> Result<BTreeMap<String, Arc<Mustache>>> {
    let mut loaded = BTreeMap::new();
    let mut wanted = included(main);
    while let Some((name, error)) = wanted.pop() {
        if loaded.contains_key(&name) {
            continue;
        }
        if loaded.len() == MAX_PARTIALS {
            return Err(error(format!("more than {MAX_PARTIALS} partials")));
        }
        let file = template_name(&name).map_err(|wrong| error(wrong.message))?;
        let source = sources(&file).map_err(|reason| error(format!("the partial {file}: {}", reason.message)))?;
        let partial = parse(&file, &source)?;
        wanted.extend(included(&partial));
        loaded.insert(name, Arc::new(partial));
    }
    Ok(loaded)
}

/// What makes an error of a message, with the place of a tag.
type ErrorAt = Box<dyn Fn(String) -> Error>;

fn included(template: &Mustache) -> Vec<(String, ErrorAt)> {
    let mut found = Vec::new();
    let mut nodes: Vec<&Node> = template.nodes().iter().collect();
    while let Some(node) = nodes.pop() {
        match node {
            Node::Section { children, .. } => nodes.extend(children),
            Node::Partial { name, at, .. } => {
                let place = template.error(*at, String::new());
                let error = move |message| broken(&crate::domain::mustache::TemplateError { message, ..place.clone() });
                found.push((name.clone(), Box::new(error) as ErrorAt));
            }
            _ => (),
        }
    }
    found
}

/// Sees a template and its partials as one text.
pub(super) fn outline(main: &Mustache, partials: &BTreeMap<String, Arc<Mustache>>) -> Result<Outline> {
    let mut walk = Walk { partials, path: vec![main.name()], inclusions: 0, sections: 0, outline: Outline::default() };
    walk.nodes(main.nodes())?;
    let Outline { text, mut used } = walk.outline;
    used.optional.retain(|name| !used.required.contains(name));
    Ok(Outline { text, used })
}

struct Walk<'a> {
    partials: &'a BTreeMap<String, Arc<Mustache>>,
    /// The templates that we are in; one that includes itself is not entered again.
    path: Vec<&'a str>,
    inclusions: usize,
    /// How many sections we are in.
    sections: usize,
    outline: Outline,
}

impl<'a> Walk<'a> {
    fn nodes(&mut self, nodes: &'a [Node]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.node(node))
    }

    fn node(&mut self, node: &'a Node) -> Result<()> {
        match node {
            Node::LineStart => (),
            Node::Text(text) => self.outline.text.push_str(text),
            Node::Variable { name, .. } => {
                self.outline.text.push(GAP);
                self.uses(name, self.sections > 0);
            }
            Node::Section { name, children, .. } => {
                self.uses(name, true);
                self.sections += 1;
                self.nodes(children)?;
                self.sections -= 1;
            }
            Node::Partial { name, indent, .. } => return self.partial(name, indent.as_deref()),
        }
        Ok(())
    }

    fn uses(&mut self, name: &str, optional: bool) {
        if name == "." || BUILT_INS.contains(&name) {
            return;
        }
        let used = &mut self.outline.used;
        let set = if optional { &mut used.optional } else { &mut used.required };
        set.insert(name.to_owned());
    }

    fn partial(&mut self, name: &'a str, indent: Option<&str>) -> Result<()> {
        self.inclusions += 1;
        if self.inclusions > MAX_INCLUSIONS || self.outline.text.len() > MAX_OUTPUT_BYTES {
            return Err(Error::internal(format!("template {}: it includes too much", self.path.first().unwrap_or(&"?"))));
        }
        let Some(partial) = self.partials.get(name).filter(|_| !self.path.contains(&name)) else { return Ok(()) };
        self.outline.text.push_str(indent.unwrap_or_default());
        self.path.push(name);
        self.nodes(partial.nodes())?;
        self.path.pop();
        Ok(())
    }
}
