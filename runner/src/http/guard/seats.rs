//! Who is connected: the caps, in total and per address, and the list that is needed to close connections from outside.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// In place of a time: a request is being served.
const BUSY: u64 = u64::MAX;

/// All seats of one listener.
pub(super) struct Seats {
    total: usize,
    per_address: usize,
    opened: Instant,
    room: Mutex<Room>,
}

#[derive(Default)]
struct Room {
    next: u64,
    taken: HashMap<u64, Arc<Sitter>>,
    addresses: HashMap<IpAddr, usize>,
}

struct Sitter {
    socket: Arc<TcpStream>,
    /// Since when nothing is asked, in milliseconds since `opened`, or `BUSY`.
    idle_since: AtomicU64,
}

/// A place for one connection, free again when this is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    sitter: Arc<Sitter>,
    id: u64,
    peer: IpAddr,
}

impl Seats {
    pub(super) fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, opened: Instant::now(), room: Mutex::default() })
    }

    /// A seat for `socket`, or the socket back if all seats, or all of its address, are taken.
    pub(super) fn take(self: &Arc<Self>, socket: TcpStream, peer: IpAddr) -> Result<Seat, TcpStream> {
        let peer = peer.to_canonical();
        let mut room = self.room();
        let here = room.addresses.get(&network(peer)).copied().unwrap_or(0);
        if room.taken.len() >= self.total || here >= self.per_address {
            return Err(socket);
        }
        let sitter = Arc::new(Sitter { socket: Arc::new(socket), idle_since: AtomicU64::new(self.now()) });
        let id = room.next;
        room.next += 1;
        room.addresses.insert(network(peer), here + 1);
        room.taken.insert(id, Arc::clone(&sitter));
        Ok(Seat { seats: Arc::clone(self), sitter, id, peer })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.room().taken.len()
    }

    /// Closes the connections on which nothing was asked for `age`. What they have sent already is still read.
    pub(super) fn close_idle(&self, age: Duration) {
        let latest = self.now().saturating_sub(age.as_millis() as u64);
        self.close(Shutdown::Read, |since| since != BUSY && since <= latest);
    }

    /// Closes every connection, whatever is going on there.
    pub(super) fn close_all(&self) {
        self.close(Shutdown::Both, |_| true);
    }

    fn close(&self, how: Shutdown, which: impl Fn(u64) -> bool) {
        for sitter in self.room().taken.values() {
            if which(sitter.idle_since.load(Ordering::SeqCst)) {
                // One that has gone meanwhile needs no closing.
                let _ = sitter.socket.shutdown(how);
            }
        }
    }

    fn now(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    pub(super) fn socket(&self) -> Arc<TcpStream> {
        Arc::clone(&self.sitter.socket)
    }

    /// A request has begun.
    pub(super) fn busy(&self) {
        self.sitter.idle_since.store(BUSY, Ordering::SeqCst);
    }

    /// Nothing is asked just now.
    pub(super) fn idle(&self) {
        self.sitter.idle_since.store(self.seats.now(), Ordering::SeqCst);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut room = self.seats.room();
        room.taken.remove(&self.id);
        let network = network(self.peer);
        if let Some(count) = room.addresses.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                room.addresses.remove(&network);
            }
        }
    }
}

/// What counts as one address: with IPv6, every customer has a whole /64 of them.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn sockets() -> impl FnMut() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        move || TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn seats_are_capped_in_total_and_per_address_and_come_back() {
        let mut socket = sockets();
        let seats = Seats::new(3, 2);
        let mut take = |peer: &str| seats.take(socket(), peer.parse().unwrap()).ok();
        let (a, b) = (take("10.0.0.1"), take("::ffff:10.0.0.1"));
        assert!(a.is_some() && b.is_some());
        assert!(take("10.0.0.1").is_none(), "one address has two seats");
        let c = take("10.0.0.2");
        assert!(c.is_some() && take("10.0.0.3").is_none(), "there are three seats");
        drop((a, b, c));
        assert_eq!(seats.taken(), 0);
        assert!(seats.room().addresses.is_empty(), "nothing is remembered of who has left");
        assert!(take("10.0.0.1").is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut socket = sockets();
        let seats = Seats::new(9, 1);
        let mut take = |peer: &str| seats.take(socket(), peer.parse().unwrap()).ok();
        let first = take("2001:db8::1");
        assert!(first.is_some() && take("2001:db8::2").is_none() && take("2001:db8:0:1::1").is_some());
    }
}
