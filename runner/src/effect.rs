//! Acts that leave something behind outside of this process's memory, by name: a change of the store, a batch job, rules on a gateway.
//!
//! A program may die before and after each of them, and nothing may be lost or doubled by that. So that tests can cause every such
//! death, and so that no act can be forgotten, all acts of this kind run in [`around`]. In builds with debug assertions, and in no other,
//! two environment variables speak of them:
//!
//! - `BWVISU_EFFECTS_FILE=PATH`: the name of every act that is reached is appended to this file, one per line;
//! - `BWVISU_DIE_AT=NAME:before` or `NAME:after`: the first act of this name ends the process with SIGKILL, before or after it is done.

/// Runs `act`, which is known as `name`.
pub fn around<T>(name: &'static str, act: impl FnOnce() -> T) -> T {
    point(name, "before");
    let done = act();
    point(name, "after");
    done
}

#[cfg(not(debug_assertions))]
fn point(_name: &'static str, _side: &'static str) {}

#[cfg(debug_assertions)]
fn point(name: &'static str, side: &'static str) {
    if side == "before"
        && let Some(path) = std::env::var_os("BWVISU_EFFECTS_FILE")
    {
        note(&path, name);
    }
    if std::env::var("BWVISU_DIE_AT").is_ok_and(|wanted| wanted == format!("{name}:{side}")) {
        die();
    }
}

#[cfg(debug_assertions)]
fn note(path: &std::ffi::OsStr, name: &str) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    // One write, so that lines of several threads do not mix.
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes())) {
        log::error!("{}: {error}", path.display());
    }
}

/// As `kill -9` from outside: nothing is cleaned up, no other thread gets on.
#[cfg(debug_assertions)]
fn die() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}
