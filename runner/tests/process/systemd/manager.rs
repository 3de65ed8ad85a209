//! A little of what systemd is for a service: the socket for its words, and the store of its sockets.

use crate::world::{Bench, Served, until};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;

/// What one service has said, and what was kept for it.
#[derive(Default)]
pub struct Kept {
    pub words: Vec<String>,
    pub sockets: BTreeMap<String, Vec<OwnedFd>>,
}

impl Kept {
    fn heed(&mut self, text: &str, mut handed: Vec<OwnedFd>) {
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        let has = |word: &str| text.lines().any(|line| line == word);
        if has("FDSTORE=1") {
            self.sockets.entry(name.to_owned()).or_default().append(&mut handed);
        }
        if has("FDSTOREREMOVE=1") {
            self.sockets.remove(name);
        }
        self.words.push(text.replace('\n', " ").trim().to_owned());
    }
}

/// The service manager.
pub struct Manager {
    kept: Arc<Mutex<Kept>>,
}

impl Manager {
    /// Listens for the words of all that `bench` starts from now on.
    pub fn of(bench: &mut Bench) -> Self {
        let path = bench.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        bench.environment.push(("NOTIFY_SOCKET".into(), path.display().to_string()));
        let kept = Arc::new(Mutex::new(Kept::default()));
        let shared = Arc::clone(&kept);
        thread::spawn(move || {
            loop {
                let (text, handed) = receive(&socket);
                shared.lock().unwrap().heed(&text, handed);
            }
        });
        Self { kept }
    }

    /// What was said so far, each message in one line.
    pub fn words(&self) -> Vec<String> {
        self.kept.lock().unwrap().words.clone()
    }

    /// Waits until this was said, as the beginning of a message, more often than `before` times.
    pub fn hears(&self, word: &str, before: usize) {
        let count = || self.words().iter().filter(|said| said.starts_with(word)).count();
        until(word, || (count() > before).then_some(()), || format!("{:?}", self.words()));
    }

    /// The names of the sockets that are kept, and how many of each.
    pub fn keeps(&self) -> Vec<(String, usize)> {
        self.kept.lock().unwrap().sockets.iter().map(|(name, sockets)| (name.clone(), sockets.len())).collect()
    }

    /// Starts the program with the sockets that are kept for it.
    pub fn serve(&self, bench: &Bench) -> Served {
        let kept = self.kept.lock().unwrap();
        let copy = |sockets: &Vec<OwnedFd>| sockets[0].try_clone().unwrap();
        let sockets: Vec<(String, OwnedFd)> = kept.sockets.iter().map(|(name, sockets)| (name.clone(), copy(sockets))).collect();
        drop(kept);
        serve_with(bench, sockets, &[])
    }
}

/// Starts `serve` and these words with these sockets, two at most, handed over as systemd does it.
pub fn serve_with(bench: &Bench, sockets: Vec<(String, OwnedFd)>, words: &[&str]) -> Served {
    let names = sockets.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(":");
    let count = sockets.len();
    // They come in where a program has its input and output, and are put where they belong.
    let line = format!("exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}");
    let mut command = bench.command_after(&line);
    let mut places = sockets.into_iter().map(|(_, socket)| Stdio::from(socket));
    let nothing = || Stdio::from(File::open("/dev/null").unwrap());
    command.stdin(places.next().unwrap_or_else(nothing)).stdout(places.next().unwrap_or_else(nothing));
    assert!(places.next().is_none(), "there is room for two");
    bench.serve_as(command.arg("serve").args(words))
}

fn receive(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut handed = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            handed.extend(sockets);
        }
    }
    (String::from_utf8_lossy(&text[..got.bytes]).into_owned(), handed)
}
