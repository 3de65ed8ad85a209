//! The ground floor: values and what follows from them. No process, socket, file, clock, randomness or log in here.

pub mod batch_script;
pub mod grant;
pub mod job;
pub mod mustache;
pub mod ports;
pub mod shell;
pub mod summary;
pub mod template;
pub mod text;
pub mod trail;
pub mod user;
