//! The rules around a template: what it may be called, what it may hold, what may be filled in, and what must come out.
//!
//! A template is loaded once, with its partials, and checked as far as its text is fixed. What variables decide (the number of
//! ports, a section) is checked again on each rendered script. Values cannot hold newlines, so the lines of a rendered script
//! are lines that somebody wrote into the template.
//!
//! Instructions to this module stand in comments of the template: `{{! bwvisu: allow-leading-dash NAME… }}` lets values of the
//! named variables begin with `-`, `{{! bwvisu: allow-parent NAME… }}` lets them hold `..` as a part of a path.

mod name;
mod outline;
mod script;
mod variables;

pub use name::{TemplateName, template_name};
pub use script::{PortsLine, RequestedPorts, find_ports_line};
pub use variables::{BuiltIns, check_variables};

use crate::domain::mustache::{Mustache, TemplateError};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What gives a partial's source by the name of its file in the templates folder.
pub type PartialSources<'a> = &'a dyn Fn(&TemplateName) -> Result<String>;

/// A template with all that it includes, checked.
#[derive(Debug, Clone)]
pub struct Template {
    name: TemplateName,
    main: Mustache,
    partials: BTreeMap<String, Arc<Mustache>>,
    permissions: variables::Permissions,
    used: outline::UsedVariables,
    max_ports: u32,
    /// How many ports a job of this template asks for, as far as the template alone says.
    pub requested_ports: RequestedPorts,
}

/// A script that came out of a template. Its ports line is still to be replaced (`batch_script`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, ports line and all.
    pub script: String,
    /// How many ports it asks for; none if it has no ports line.
    pub ports: Option<u32>,
}

impl Template {
    /// Parses a template and its partials and checks all that does not depend on variables. Mistakes are the administrator's,
    /// so errors are internal ones; they name the file and, where there is one, the line and the column.
    pub fn load(name: &TemplateName, source: &str, partials: PartialSources, max_ports: u32) -> Result<Self> {
        let main = parse(name, source)?;
        let partials = outline::load_partials(&main, partials)?;
        let outline = outline::outline(&main, &partials)?;
        let requested_ports = script::check(&outline.text, max_ports)
            .map_err(|message| Error::internal(message).within(format!("template {name}")))?;
        let permissions = variables::Permissions::read(std::iter::once(&main).chain(partials.values().map(AsRef::as_ref)))?;
        Ok(Self { name: name.clone(), main, partials, permissions, used: outline.used, max_ports, requested_ports })
    }

    /// The name that it was loaded by.
    pub fn name(&self) -> &TemplateName {
        &self.name
    }

    /// The variables that must be supplied for every job. Built-in ones are not among them.
    pub fn required(&self) -> &BTreeSet<String> {
        &self.used.required
    }

    /// The variables that may be supplied: names of sections, and what is only used within sections.
    pub fn optional(&self) -> &BTreeSet<String> {
        &self.used.optional
    }

    /// Fills the template in, after checking the variables, and checks what comes out.
    pub fn render(&self, variables: &BTreeMap<String, String>, built_ins: &BuiltIns) -> Result<Rendered> {
        check_variables(variables, self)?;
        let data = variables::data(variables, built_ins)?;
        let find = |name: &str| self.partials.get(name).cloned().ok_or_else(|| format!("there is no partial \"{name}\""));
        let script = self.main.render(&data, &find).map_err(|error| self.explain(error))?;
        let ports = script::check(&script, self.max_ports)
            .map_err(|message| Error::bad_input(format!("the template {} with these variables: {message}", self.name)))?;
        Ok(Rendered { script, ports: ports.number() })
    }

    fn explain(&self, error: TemplateError) -> Error {
        match &error.missing {
            Some(name) => {
                Error::bad_input(format!("the template {} needs the variable {name}, which was not supplied", self.name))
                    .with_detail(error.to_string())
            }
            None => broken(&error),
        }
    }
}

fn parse(name: &TemplateName, source: &str) -> Result<Mustache> {
    script::check_characters(source).map_err(|message| Error::internal(message).within(format!("template {name}")))?;
    Mustache::parse(name.as_str(), source).map_err(|error| broken(&error))
}

fn broken(error: &TemplateError) -> Error {
    Error::internal(format!("template {error}"))
}

#[cfg(test)]
mod tests;
