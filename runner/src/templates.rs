//! The folder of templates. They are read anew for each job, so that an edited template counts from the next job on.

use crate::doctor::job;
use crate::domain::template::{Template, TemplateName, template_name};
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

/// No template is longer.
const MAX_BYTES: u64 = 1 << 20;

/// Templates, by the names of their files.
#[derive(Debug, Clone)]
pub struct TemplateFolder {
    folder: PathBuf,
    max_ports: u32,
}

impl TemplateFolder {
    /// The templates in `folder`, for jobs with at most `max_ports` ports.
    pub fn new(folder: PathBuf, max_ports: u32) -> Self {
        Self { folder, max_ports }
    }

    /// Reads and checks a template. `NotFound` if there is none of this name, `Internal` if the template itself is wrong.
    pub fn load(&self, name: &str) -> Result<Template> {
        let name = template_name(name)?;
        let source = self.read(&name)?;
        Template::load(&name, &source, &|partial| self.read(partial), self.max_ports)
    }

    /// The names of all templates, in order.
    pub fn names(&self) -> Result<Vec<String>> {
        let unreadable = |e: io::Error| Error::unavailable(format!("templates folder {}: {e}", self.folder.display()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
            if name.starts_with("template_") && template_name(&name).is_ok() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &TemplateName) -> Result<String> {
        let path = self.folder.join(name.as_str());
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text)) {
            Ok(length) if length as u64 > MAX_BYTES => {
                Err(Error::internal(format!("template {name}: longer than {MAX_BYTES} bytes")))
            }
            Ok(_) => Ok(text),
            // What tries the whole must be there wherever the folder is.
            Err(e) if e.kind() == io::ErrorKind::NotFound && name.as_str() == job::TEMPLATE => Ok(job::TEXT.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::not_found(format!("no such template: {name}"))),
            Err(e) => Err(Error::internal(format!("template {name} cannot be read: {e}"))),
        }
    }
}
