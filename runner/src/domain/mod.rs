//! The ground floor: values and what follows from them. No process, socket, file, clock, randomness or log in here.

pub mod grant;
pub mod job;
pub mod ports;
pub mod shell;
pub mod user;
