//! `template`: what authors of templates need.

use crate::config;
use crate::domain::template::{BuiltIns, RequestedPorts};
use crate::error::{Error, Result};
use crate::templates::TemplateFolder;
use clap::Subcommand;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `template …`
#[derive(Subcommand)]
pub enum TemplateCommand {
    /// Check templates: all of the folder, or those that are named
    Check {
        /// The folder; without it the configuration's, or that of the installation
        #[arg(long, value_name = "FOLDER")]
        templates: Option<PathBuf>,
        /// Names of templates
        names: Vec<String>,
    },
    /// Print what a template becomes with these variables; the ports line stays as it is
    Render {
        /// The folder; without it the configuration's, or that of the installation
        #[arg(long, value_name = "FOLDER")]
        templates: Option<PathBuf>,
        /// The template's name
        name: String,
        /// Its variables
        #[arg(value_name = "NAME=VALUE", value_parser = variable)]
        variables: Vec<(String, String)>,
    },
}

/// Reads `NAME=VALUE`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE"))
}

/// Runs `template …`.
pub fn run(named: Option<&Path>, command: &TemplateCommand) -> Result<ExitCode> {
    match command {
        TemplateCommand::Check { templates, names } => check(&folder(named, templates.as_deref())?, names),
        TemplateCommand::Render { templates, name, variables } => render(&folder(named, templates.as_deref())?, name, variables),
    }
}

/// Authors of templates need no configuration, but one that is named must be right.
fn folder(named: Option<&Path>, folder: Option<&Path>) -> Result<TemplateFolder> {
    const DEFAULT_MAX_PORTS: u32 = 100;
    let config = match config::load(named) {
        Err(error) if named.is_some() => return Err(error),
        config => config.ok(),
    };
    let max_ports = config.as_ref().map_or(DEFAULT_MAX_PORTS, |config| config.keyhole.max_ports);
    let configured = config.map(|config| config.templates);
    let folder = folder.map(Path::to_owned).or(configured).unwrap_or_else(|| config::install_dir().join("templates"));
    Ok(TemplateFolder::new(folder, max_ports))
}

fn check(templates: &TemplateFolder, names: &[String]) -> Result<ExitCode> {
    let names = if names.is_empty() { templates.names()? } else { names.to_vec() };
    if names.is_empty() {
        return Err(Error::bad_input("there are no templates (files called template_*) in the folder"));
    }
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match templates.load(&name) {
            Ok(template) => {
                let list = |names: &std::collections::BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(" ");
                println!("{name}: all right; {}", ports(template.requested_ports));
                println!("  needs: {}\n  takes: {}", list(template.required()), list(template.optional()));
            }
            Err(error) => {
                println!("WRONG {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn ports(requested: RequestedPorts) -> String {
    match requested {
        RequestedPorts::None => "asks for no ports".into(),
        RequestedPorts::Number(number) => format!("ports: {number}"),
        RequestedPorts::FromVariables => "ports: as many as variables say".into(),
    }
}

fn render(templates: &TemplateFolder, name: &str, variables: &[(String, String)]) -> Result<ExitCode> {
    let variables: BTreeMap<String, String> = variables.iter().cloned().collect();
    let built_ins = BuiltIns { job_id: 1, user: "alice", home: "/home/alice", log: "/home/alice/bwvisu-job-1.out" };
    let rendered = templates.load(name)?.render(&variables, &built_ins)?;
    print!("{}", rendered.script);
    Ok(ExitCode::SUCCESS)
}
