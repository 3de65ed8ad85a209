//! One thread that accepts on all ports of the relay. A new set of listeners is handed to it as a whole; once that is
//! answered, the sockets of the old set are closed.

use super::session::Sessions;
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How long the thread rests when the machine has no descriptors or memory left for another client.
const REST: Duration = Duration::from_millis(50);

/// How long the thread may take to close sockets; it takes no time at all unless the machine is out of everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) host: String,
    pub(super) port: u16,
}

/// A socket that accepts, and where its clients are sent.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Arc<TcpListener>,
    port: u16,
    destination: Destination,
}

impl Listener {
    /// `socket` must not block; it accepts on the external port `port`.
    pub(super) fn new(socket: TcpListener, port: u16, destination: Destination) -> Self {
        Self { socket: Arc::new(socket), port, destination }
    }

    /// The same socket with another destination.
    pub(super) fn leading_to(&self, destination: Destination) -> Self {
        Self { socket: Arc::clone(&self.socket), port: self.port, destination }
    }
}

/// External ports and their listeners.
type Listeners = BTreeMap<u16, Arc<Listener>>;

#[derive(Debug, Default)]
struct Orders {
    listeners: Listeners,
    /// Counts the sets of listeners that were handed over, and those that the thread has taken up.
    given: u64,
    taken: u64,
    stop: bool,
}

#[derive(Debug, Default)]
struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Desk {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Worker {
    bell: UnixStream,
    thread: JoinHandle<()>,
}

/// The thread, and the way to speak with it. It starts with the first listener.
#[derive(Debug)]
pub(super) struct Acceptor {
    desk: Arc<Desk>,
    worker: Mutex<Option<Worker>>,
    sessions: Arc<Sessions>,
}

impl Acceptor {
    pub(super) fn new(sessions: Arc<Sessions>) -> Self {
        Self { desk: Arc::default(), worker: Mutex::default(), sessions }
    }

    /// What is served now.
    pub(super) fn listeners(&self) -> Listeners {
        self.desk.orders().listeners.clone()
    }

    /// Serves these listeners and no others. When it returns, the sockets of all others are closed, if the caller keeps none.
    pub(super) fn serve(&self, listeners: Listeners) -> Result<()> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match worker.take() {
            Some(running) => running,
            None => self.start().map_err(|error| Error::unavailable(format!("the relay cannot start its thread: {error}")))?,
        };
        let given = {
            let mut orders = self.desk.orders();
            orders.listeners = listeners;
            orders.given += 1;
            orders.given
        };
        let _ = (&running.bell).write(&[0]);
        *worker = Some(running);
        let waits = |orders: &mut Orders| orders.taken < given;
        drop(self.desk.changed.wait_timeout_while(self.desk.orders(), PATIENCE, waits));
        Ok(())
    }

    fn start(&self) -> io::Result<Worker> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        let (desk, sessions) = (Arc::clone(&self.desk), Arc::clone(&self.sessions));
        let thread = Builder::new().name("relay".into()).spawn(move || work(&desk, &sessions, &ear))?;
        Ok(Worker { bell, thread })
    }

    /// Closes all sockets and ends the thread.
    pub(super) fn stop(&self) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        {
            let mut orders = self.desk.orders();
            orders.stop = true;
            orders.listeners.clear();
        }
        if let Some(worker) = worker {
            let _ = (&worker.bell).write(&[0]);
            let _ = worker.thread.join();
        }
    }
}

fn work(desk: &Desk, sessions: &Arc<Sessions>, ear: &UnixStream) {
    let mut door = Door { sessions, in_trouble: false };
    while let Some((listeners, number)) = next(desk) {
        acknowledge(desk, number);
        // The bell rings when there is something else to serve.
        while !door.serve(&listeners, ear) {}
    }
}

fn next(desk: &Desk) -> Option<(Vec<Arc<Listener>>, u64)> {
    let orders = desk.orders();
    (!orders.stop).then(|| (orders.listeners.values().cloned().collect(), orders.given))
}

fn acknowledge(desk: &Desk, number: u64) {
    desk.orders().taken = number;
    desk.changed.notify_all();
}

/// Where clients come in.
struct Door<'a> {
    sessions: &'a Arc<Sessions>,
    /// The last client could not be served: a flood of them is worth one line in the log.
    in_trouble: bool,
}

impl Door<'_> {
    /// Waits for clients, and takes one from each port that has some. Whether the bell rang.
    fn serve(&mut self, listeners: &[Arc<Listener>], mut ear: &UnixStream) -> bool {
        let sockets = listeners.iter().map(|listener| PollFd::new(&*listener.socket, PollFlags::IN));
        let mut waiting: Vec<PollFd> = sockets.chain([PollFd::new(ear, PollFlags::IN)]).collect();
        if poll(&mut waiting, None::<&Timespec>).is_err() {
            // Interrupted, or out of memory.
            std::thread::sleep(REST);
            return false;
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (listener, _) in listeners.iter().zip(&ready).filter(|(_, ready)| **ready) {
            self.accept(listener);
        }
        let rang = ready.last() == Some(&true);
        rang && ear.read(&mut [0; 64]).is_ok()
    }

    fn accept(&mut self, listener: &Listener) {
        let Destination { host, port } = &listener.destination;
        match listener.socket.accept() {
            Ok((client, _)) => {
                let destination = listener.destination.clone();
                let blocking = client.set_nonblocking(false);
                let opened = blocking.and_then(|()| self.sessions.open(client, listener.port, destination));
                self.report(opened, &format!("turned a client for {host}:{port} away"));
            }
            // The client has gone already.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(error) => {
                self.report(Err(error), &format!("cannot accept a client for {host}:{port}"));
                std::thread::sleep(REST);
            }
        }
    }

    fn report(&mut self, done: io::Result<()>, what: &str) {
        if let Err(error) = &done
            && !self.in_trouble
        {
            log::warn!("the relay {what}: {error}");
        }
        self.in_trouble = done.is_err();
    }
}
