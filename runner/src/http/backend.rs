//! The server behind the guard: tiny_http on a private Unix socket, a fixed number of workers, and the handler.
//!
//! The only module that names tiny_http. Its listener ends for good when it runs out of file descriptors or threads, so
//! it is replaced whenever the guard finds it gone; workers move over to the new one.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::guard::Handler;
use super::guard::head::{ID, PEER, TICKET};
use super::guard::tickets::Tickets;
use super::message::{Request, Response};
use crate::error::{Error, Result};
use crate::logging::id;
use crate::seldom::Seldom;

/// The kernel's limit for the path of a Unix socket, with the byte that ends it.
const LONGEST_PATH: usize = 108;
/// A server that dies at once is not started again more often than this; each start leaves threads that end later.
const PAUSE: Duration = Duration::from_secs(1);

/// The server, its workers, and the tickets to them.
pub(crate) struct Backend {
    name: String,
    folder: PathBuf,
    body_bytes: usize,
    workers: usize,
    handler: Handler,
    tickets: Arc<Tickets>,
    at_work: AtomicUsize,
    trouble: Seldom,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    server: Option<Arc<tiny_http::Server>>,
    generation: u64,
    opened: Option<Instant>,
    stopped: bool,
}

/// Where the present server listens.
pub(crate) struct Door {
    pub(crate) generation: u64,
    pub(crate) path: PathBuf,
}

impl Backend {
    pub(crate) fn start(name: &str, folder: &Path, workers: usize, body_bytes: usize, handler: Handler) -> Result<Arc<Self>> {
        prepare(folder, name)?;
        let backend = Arc::new(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            body_bytes,
            workers,
            handler,
            tickets: Tickets::new(workers),
            at_work: AtomicUsize::new(0),
            trouble: Seldom::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let cannot = |error: io::Error| Error::unavailable(format!("{name}: cannot listen in {}: {error}", folder.display()));
        backend.door().map_err(cannot)?;
        for _ in 0..workers {
            backend.employ().inspect_err(|_| backend.stop(Instant::now())).map_err(cannot)?;
        }
        Ok(backend)
    }

    /// Logs what the guard has met with here.
    pub(crate) fn complain(&self, what: &str) {
        if let Some(left_out) = self.trouble.due(()) {
            log::error!("{}: the server behind the guard {what}{left_out}", self.name);
        }
    }

    pub(crate) fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// Where to connect to; starts a new server if the last one is lost.
    pub(crate) fn door(&self) -> io::Result<Door> {
        let mut state = self.state();
        if state.server.is_none() {
            self.open(&mut state)?;
            self.changed.notify_all();
        }
        Ok(Door { generation: state.generation, path: self.path(state.generation) })
    }

    /// The server of this generation is of no more use.
    pub(crate) fn lost(&self, generation: u64, why: &str) {
        let mut state = self.state();
        if state.generation != generation || state.stopped {
            return;
        }
        if let Some(server) = state.server.take() {
            log::error!("{}: the server behind the guard is lost ({why}); it will be replaced", self.name);
            self.release(&server);
        }
    }

    /// Lets the workers end when they have done what they are at, and waits for them until `deadline`.
    pub(crate) fn stop(&self, deadline: Instant) {
        let server = {
            let mut state = self.state();
            state.stopped = true;
            state.server.take()
        };
        self.changed.notify_all();
        if let Some(server) = server {
            self.release(&server);
        }
        while self.at_work.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Wakes the workers that wait at `server`.
    fn release(&self, server: &tiny_http::Server) {
        (0..self.workers).for_each(|_| server.unblock());
    }

    fn open(&self, state: &mut State) -> io::Result<()> {
        if state.stopped || state.opened.is_some_and(|opened| opened.elapsed() < PAUSE) {
            return Err(io::Error::other("it has ended, and a new one is not due yet"));
        }
        state.opened = Some(Instant::now());
        let path = self.path(state.generation + 1);
        remove(&path)?;
        let listener = UnixListener::bind(&path)?;
        // It panics where it cannot start a thread.
        let server = catch_unwind(AssertUnwindSafe(|| tiny_http::Server::from_listener(listener, None)));
        let server = server.map_err(|_| io::Error::other("it could not start its thread"))?.map_err(io::Error::other)?;
        state.server = Some(Arc::new(server));
        state.generation += 1;
        Ok(())
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.folder.join(format!("{}.{generation}.sock", self.name))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn employ(self: &Arc<Self>) -> io::Result<()> {
        let backend = Arc::clone(self);
        self.at_work.fetch_add(1, Ordering::SeqCst);
        let thread = thread::Builder::new().name(format!("{}-worker", self.name)).spawn(move || {
            backend.work();
            backend.at_work.fetch_sub(1, Ordering::SeqCst);
        });
        thread.map(drop).inspect_err(|_| {
            self.at_work.fetch_sub(1, Ordering::SeqCst);
        })
    }

    fn work(&self) {
        while let Some((generation, server)) = self.present_server() {
            match server.recv() {
                Ok(asked) => self.serve(asked),
                Err(error) => self.lost(generation, &error.to_string()),
            }
        }
    }

    /// Waits for a server while there is none; `None` when there will be none.
    fn present_server(&self) -> Option<(u64, Arc<tiny_http::Server>)> {
        let none_yet = |state: &mut State| state.server.is_none() && !state.stopped;
        let state = self.changed.wait_while(self.state(), none_yet).unwrap_or_else(PoisonError::into_inner);
        state.server.clone().map(|server| (state.generation, server))
    }

    /// One request from its ticket to its answer. A panic in tiny_http itself must not cost us the worker either.
    fn serve(&self, mut asked: tiny_http::Request) {
        let Some(_work) = value(&asked, TICKET).and_then(|id| id.parse().ok()).and_then(|id| self.tickets.take_up(id)) else {
            return log::debug!("{}: a request that the guard gave up is dropped", self.name);
        };
        let _id = value(&asked, ID).map(|id| id::within(id.into()));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let request = read(&mut asked, self.body_bytes)?;
            asked.respond(outgoing(self.handle(request)))
        }));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("{}: a request could not be answered: {error}", self.name),
            Err(_) => log::error!("{}: the server behind the guard panicked over a request", self.name),
        }
    }

    fn handle(&self, request: Request) -> Response {
        let what = format!("{} {}", request.method, request.path);
        catch_unwind(AssertUnwindSafe(|| (self.handler)(request))).unwrap_or_else(|panic| {
            log::error!("{}: {what}: the handler panicked: {}", self.name, words(panic.as_ref()));
            Response::problem(500, "an unexpected fault; it has been logged")
        })
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn value<'a>(asked: &'a tiny_http::Request, name: &'static str) -> Option<&'a str> {
    asked.headers().iter().find(|header| header.field.equiv(name)).map(|header| header.value.as_str())
}

fn read(asked: &mut tiny_http::Request, most: usize) -> io::Result<Request> {
    let strange = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let peer: IpAddr = value(asked, PEER).and_then(|peer| peer.parse().ok()).ok_or_else(|| strange("no client's address"))?;
    let length = asked.body_length().filter(|length| *length <= most).ok_or_else(|| strange("no length"))?;
    let mut body = Vec::with_capacity(length);
    asked.as_reader().take(length as u64).read_to_end(&mut body)?;
    if body.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (path, query) = match asked.url().split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (asked.url(), None),
    };
    let method = asked.method().as_str().to_owned();
    Ok(Request { method, path: path.to_owned(), query, headers: incoming(asked.headers()), body, peer })
}

/// The client's own headers: those that the guard adds end here.
fn incoming(headers: &[tiny_http::Header]) -> Vec<(String, String)> {
    let guards = ["connection", "content-length", ID, PEER, TICKET];
    let lower = |header: &tiny_http::Header| header.field.as_str().as_str().to_ascii_lowercase();
    let pairs = headers.iter().map(|header| (lower(header), header.value.as_str().to_owned()));
    pairs.filter(|(name, _)| !guards.contains(&name.as_str())).collect()
}

fn outgoing(response: Response) -> tiny_http::Response<io::Cursor<Vec<u8>>> {
    let response = if (200..600).contains(&response.status) {
        response
    } else {
        log::error!("a handler answered with the status {}", response.status);
        Response::problem(500, "an unexpected fault; it has been logged")
    };
    let headers = response.headers.iter().filter_map(|(name, value)| header(name, value)).collect();
    let length = response.body.len();
    let body = io::Cursor::new(response.body);
    tiny_http::Response::new(tiny_http::StatusCode(response.status), headers, body, Some(length), None)
        // The guard wants a length, never chunks.
        .with_chunked_threshold(usize::MAX)
}

/// A header that could split the answer in two is left out: its value may hold what a client sent.
fn header(name: &str, value: &str) -> Option<tiny_http::Header> {
    let fine = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !fine {
        log::error!("a handler's header {name:?} is left out: its name or value has characters that no header may have");
        return None;
    }
    tiny_http::Header::from_bytes(name, value).ok()
}

/// Makes the folder ours alone, and removes what an earlier run left there.
fn prepare(folder: &Path, name: &str) -> Result<()> {
    let cannot = |error: io::Error| Error::unavailable(format!("{}: not usable as socket folder: {error}", folder.display()));
    let longest = folder.join(format!("{name}.{}.sock", u32::MAX));
    if longest.as_os_str().len() >= LONGEST_PATH {
        let message = "the path is too long for a socket's folder; choose a shorter one";
        return Err(Error::bad_input(format!("{}: {message}", folder.display())));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(cannot)?;
    check_owner(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(cannot)?;
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        if is_socket_of(&entry.file_name().to_string_lossy(), name) {
            remove(&entry.path()).map_err(cannot)?;
        }
    }
    Ok(())
}

fn check_owner(folder: &Path) -> Result<()> {
    let place = folder.display();
    let data = fs::symlink_metadata(folder).map_err(|error| Error::unavailable(format!("{place}: {error}")))?;
    if !data.is_dir() {
        return Err(Error::bad_input(format!("{place}: the socket folder is not a folder; a link is not accepted")));
    }
    if data.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::bad_input(format!("{place}: the socket folder belongs to another user; choose one of your own")));
    }
    Ok(())
}

fn is_socket_of(file: &str, name: &str) -> bool {
    let generation = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.strip_suffix(".sock"));
    generation.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn start(folder: &Path) -> Result<Arc<Backend>> {
        Backend::start("api", folder, 2, 1024, Arc::new(|_| Response::text(200, "hi")))
    }

    #[test]
    fn the_folder_becomes_private_and_old_sockets_go() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("deep/er");
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        for name in ["api.1.sock", "api.77.sock", "keyhole.1.sock", "api.x.sock"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let backend = start(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let left = |name: &str| folder.join(name).exists();
        assert_eq!(
            ["api.1.sock", "api.77.sock", "keyhole.1.sock", "api.x.sock"].map(left),
            [true, false, true, true],
            "the first is the new one"
        );
        backend.stop(Instant::now() + Duration::from_secs(5));
        assert_eq!(backend.at_work.load(Ordering::SeqCst), 0);
        assert!(!left("api.1.sock"));
    }

    #[test]
    fn a_folder_that_will_not_do_is_refused_with_the_reason() {
        let place = tempfile::tempdir().unwrap();
        let (file, link, long) = (place.path().join("file"), place.path().join("link"), place.path().join("x".repeat(90)));
        fs::write(&file, "").unwrap();
        symlink(place.path(), &link).unwrap();
        for (folder, expected) in [(&file, "not usable"), (&link, "a link is not accepted"), (&long, "too long")] {
            let message = start(folder).err().unwrap().message;
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_lost_server_is_replaced_but_not_in_a_storm() {
        let place = tempfile::tempdir().unwrap();
        let backend = start(place.path()).unwrap();
        let first = backend.door().unwrap();
        backend.lost(first.generation, "test");
        assert!(backend.door().is_err(), "a second one within a second");
        thread::sleep(PAUSE);
        let second = backend.door().unwrap();
        assert_eq!(second.generation, first.generation + 1);
        backend.lost(first.generation, "old news");
        assert_eq!(backend.door().unwrap().generation, second.generation);
        backend.stop(Instant::now() + Duration::from_secs(5));
        assert!(backend.door().is_err(), "stopped is stopped");
    }

    #[test]
    fn headers_that_could_split_an_answer_are_left_out() {
        assert!(header("Location", "/jobs/1").is_some());
        for (name, value) in [("Location", "/\r\nSet-Cookie: a=b"), ("Lo cation", "/"), ("", "/"), ("A:", "b"), ("A", "\u{e9}")] {
            assert!(header(name, value).is_none(), "{name:?}: {value:?}");
        }
    }
}
