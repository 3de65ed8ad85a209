//! Who is connected: the caps, in total and per address, and the list that is needed to close connections from outside.
//!
//! When all seats are taken, a newcomer gets the seat of somebody who has not sent a whole request yet. So whoever asks
//! at once is served, however many others only sit there.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// By how much the share of one address shrinks when more than half of the seats are taken.
const SHRINK: usize = 4;

/// All seats of one listener.
pub(super) struct Seats {
    total: usize,
    per_address: usize,
    room: Mutex<Room>,
}

#[derive(Default)]
struct Room {
    next: u64,
    taken: HashMap<u64, Sitter>,
    addresses: HashMap<IpAddr, usize>,
}

struct Sitter {
    socket: Arc<TcpStream>,
    network: IpAddr,
    stage: Stage,
    /// When it sat down, or had its last answer.
    since: Instant,
    /// Whether it had an answer to a whole request, or has it right now.
    was_answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing is asked.
    Idle,
    /// A request has begun and is not complete.
    Arriving,
    /// A password was wrong, and the answer to it waits.
    Denied,
    /// A whole request is there, and its answer is made.
    Answering,
    /// The answer is being written, or is.
    Answered,
}

impl Stage {
    fn has_whole_request(self) -> bool {
        matches!(self, Self::Answering | Self::Answered)
    }
}

/// A place for one connection, free again when this is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    socket: Arc<TcpStream>,
    id: u64,
    peer: IpAddr,
}

impl Seats {
    pub(super) fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, room: Mutex::default() })
    }

    /// A seat for `socket`, and the address of whoever had to leave for it because all were taken. The socket comes back if its address has its
    /// share, or if every seat is somebody's who is being answered. Wrong passwords do not count for that share: behind a proxy all clients have
    /// one address, and who guesses must not keep out the others. Nor do, outside of a crowd and up to as many again, those who have their
    /// answer and have hung up: on a busy machine it takes a while until their threads notice.
    pub(super) fn take(self: &Arc<Self>, socket: TcpStream, peer: IpAddr) -> Result<(Seat, Option<IpAddr>), TcpStream> {
        let peer = peer.to_canonical();
        let mut room = self.room();
        let here = room.addresses.get(&network(peer)).copied().unwrap_or(0);
        let share = self.share(room.taken.len());
        let hung_up = || if self.is_crowd(room.taken.len()) { 0 } else { room.hung_up(network(peer)).min(share) };
        if here >= share && here - hung_up() >= share && !room.put_out_denied(network(peer)) {
            return Err(socket);
        }
        let mut left = None;
        if room.taken.len() >= self.total {
            left = room.put_out();
            if left.is_none() {
                return Err(socket);
            }
        }
        let socket = Arc::new(socket);
        let id = room.seat(Arc::clone(&socket), network(peer));
        Ok((Seat { seats: Arc::clone(self), socket, id, peer }, left))
    }

    /// How many seats one address may have. It is less in a crowd, so that few addresses cannot fill the room.
    fn share(&self, taken: usize) -> usize {
        if self.is_crowd(taken) { self.per_address.div_ceil(SHRINK) } else { self.per_address }
    }

    fn is_crowd(&self, taken: usize) -> bool {
        taken > self.total / 2
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.room().taken.len()
    }

    /// Closes the connections on which nothing was asked for `age`. What they have sent already is still read.
    pub(super) fn close_idle(&self, age: Duration) {
        self.close(Shutdown::Read, |sitter| sitter.stage == Stage::Idle && sitter.since.elapsed() >= age);
    }

    /// Closes every connection, whatever is going on there.
    pub(super) fn close_all(&self) {
        self.close(Shutdown::Both, |_| true);
    }

    fn close(&self, how: Shutdown, which: impl Fn(&Sitter) -> bool) {
        for sitter in self.room().taken.values().filter(|sitter| which(sitter)) {
            // One that has gone meanwhile needs no closing.
            let _ = sitter.socket.shutdown(how);
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn seat(&mut self, socket: Arc<TcpStream>, network: IpAddr) -> u64 {
        let id = self.next;
        self.next += 1;
        *self.addresses.entry(network).or_default() += 1;
        self.taken.insert(id, Sitter { socket, network, stage: Stage::Idle, since: Instant::now(), was_answered: false });
        id
    }

    /// How many of this network have all of an answer and have hung up. A client can do that and go on reading, or not read at all: nothing but
    /// their number keeps the former in bounds, and what is still to be written tells the latter.
    fn hung_up(&self, network: IpAddr) -> usize {
        let over = |sitter: &Sitter| sitter.was_answered && matches!(sitter.stage, Stage::Idle | Stage::Answered);
        let sitters = self.taken.values().filter(|sitter| sitter.network == network && over(sitter));
        let mut ends: Vec<PollFd> =
            sitters.map(|sitter| PollFd::new(&sitter.socket, PollFlags::RDHUP | PollFlags::OUT)).collect();
        // Looks, and waits for nobody.
        if poll(&mut ends, Some(&Timespec::default())).is_err() {
            return 0;
        }
        let gone = |flags: PollFlags| {
            flags.intersects(PollFlags::HUP | PollFlags::ERR) || flags.contains(PollFlags::RDHUP | PollFlags::OUT)
        };
        ends.iter().filter(|end| gone(end.revents())).count()
    }

    /// Ends the oldest connection without a whole request, of the address that has the most of those.
    fn put_out(&mut self) -> Option<IpAddr> {
        let unfinished = || self.taken.iter().filter(|(_, sitter)| !sitter.stage.has_whole_request());
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        unfinished().for_each(|(_, sitter)| *counts.entry(sitter.network).or_default() += 1);
        let worst = |id: u64, sitter: &Sitter| (counts.get(&sitter.network).copied(), Reverse((sitter.since, id)));
        let id = unfinished().max_by_key(|(id, sitter)| worst(**id, sitter)).map(|(id, _)| *id)?;
        self.put_out_this(id)
    }

    /// Ends the oldest connection of this network on which a password was wrong, if there is one.
    fn put_out_denied(&mut self, network: IpAddr) -> bool {
        let denied = self.taken.iter().filter(|(_, sitter)| sitter.stage == Stage::Denied && sitter.network == network);
        let oldest = denied.min_by_key(|(id, sitter)| (sitter.since, **id)).map(|(id, _)| *id);
        oldest.and_then(|id| self.put_out_this(id)).is_some()
    }

    fn put_out_this(&mut self, id: u64) -> Option<IpAddr> {
        let sitter = self.leave(id)?;
        // Its thread wakes, finds the connection ended, and ends too.
        let _ = sitter.socket.shutdown(Shutdown::Both);
        Some(sitter.network)
    }

    fn leave(&mut self, id: u64) -> Option<Sitter> {
        let sitter = self.taken.remove(&id)?;
        if let Some(count) = self.addresses.get_mut(&sitter.network) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&sitter.network);
            }
        }
        Some(sitter)
    }
}

impl Seat {
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    pub(super) fn socket(&self) -> Arc<TcpStream> {
        Arc::clone(&self.socket)
    }

    /// A request has begun.
    pub(super) fn arriving(&self) {
        self.enter(Stage::Arriving);
    }

    /// A password was wrong, and the answer waits.
    pub(super) fn denied(&self) {
        self.enter(Stage::Denied);
    }

    /// A whole request is there. Says no if the seat is lost already; the request is not to be begun then.
    pub(super) fn answering(&self) -> bool {
        self.enter(Stage::Answering)
    }

    /// The answer to a whole request is there, and is written now.
    pub(super) fn answered(&self) {
        self.enter(Stage::Answered);
    }

    /// Nothing is asked just now.
    pub(super) fn idle(&self) {
        self.enter(Stage::Idle);
    }

    fn enter(&self, stage: Stage) -> bool {
        let mut room = self.seats.room();
        let Some(sitter) = room.taken.get_mut(&self.id) else { return false };
        if sitter.stage.has_whole_request() {
            sitter.since = Instant::now();
        }
        sitter.was_answered |= stage == Stage::Answered;
        sitter.stage = stage;
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.room().leave(self.id);
    }
}

/// What counts as one address: with IPv6, every customer has a whole /64 of them.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
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
    fn seats_are_capped_per_address_and_come_back() {
        let mut socket = sockets();
        let seats = Seats::new(30, 2);
        let mut take = |peer: &str| seats.take(socket(), peer.parse().unwrap()).ok();
        let (a, b) = (take("10.0.0.1"), take("::ffff:10.0.0.1"));
        assert!(a.is_some() && b.is_some());
        assert!(take("10.0.0.1").is_none(), "one address has two seats");
        let c = take("10.0.0.2");
        assert!(c.is_some());
        drop((a, b, c));
        assert_eq!(seats.taken(), 0);
        assert!(seats.room().addresses.is_empty(), "nothing is remembered of who has left");
        assert!(take("10.0.0.1").is_some());
    }

    #[test]
    fn who_guesses_passwords_keeps_nobody_of_their_address_out() {
        let mut socket = sockets();
        let seats = Seats::new(30, 2);
        let mut take = |last: u8| seats.take(socket(), [10, 0, 0, last].into());
        let (a, b) = (take(1).unwrap().0, take(1).unwrap().0);
        b.denied();
        assert!(take(2).is_ok() && take(1).unwrap().1.is_none(), "it is no fault of the room");
        assert!(a.answering() && !b.answering(), "the other one is out");
        let (c, _) = take(1).unwrap();
        assert!(take(1).is_err(), "nobody else of that address is put out");
        c.denied();
        assert!(take(1).is_ok());
        drop((a, b, c));
        assert_eq!(seats.taken(), 0);
    }

    /// Connections to `seats` from one address, each with its other end.
    fn seated(seats: &Arc<Seats>) -> impl FnMut() -> Option<(TcpStream, Seat)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        move || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (seat, _) = seats.take(listener.accept().unwrap().0, [10, 0, 0, 1].into()).ok()?;
            Some((client, seat))
        }
    }

    fn hang_up(client: TcpStream, seat: &Seat) {
        drop(client);
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&seat.socket, PollFlags::RDHUP)], Some(&patience)), Ok(1));
    }

    #[test]
    fn who_was_answered_and_has_hung_up_takes_no_seat_from_others_of_that_address() {
        let seats = Seats::new(30, 2);
        let mut take = seated(&seats);
        let [(gone, a), (_stays, b)] = [take().unwrap(), take().unwrap()];
        for seat in [&a, &b] {
            assert!(seat.answering());
            seat.answered();
        }
        assert!(take().is_none(), "both read on");
        hang_up(gone, &a);
        let (_newcomer, c) = take().unwrap();
        assert!(c.answering() && b.answering() && a.answering(), "nobody is put out for it");
        assert!(take().is_none(), "one has left, and one has come");
        drop((a, b, c));
        assert_eq!(seats.taken(), 0);
    }

    #[test]
    fn so_many_who_have_hung_up_and_no_more_are_left_out_of_account() {
        let seats = Seats::new(30, 2);
        let mut take = seated(&seats);
        let mut all = Vec::new();
        while let Some((client, seat)) = take() {
            assert!(seat.answering());
            seat.answered();
            hang_up(client, &seat);
            all.push(seat);
        }
        assert_eq!(all.len(), 4, "twice the share");
        let crowded = Seats::new(4, 8);
        let mut take = seated(&crowded);
        let all: Vec<_> = (0..3).map_while(|_| take()).collect();
        for (client, seat) in all.iter().take(2) {
            assert!(seat.answering());
            seat.answered();
            client.shutdown(Shutdown::Write).unwrap();
        }
        assert!(all.len() == 3 && take().is_none(), "two seats for each in a crowd, and none more");
    }

    #[test]
    fn who_has_hung_up_without_an_answer_is_counted() {
        let seats = Seats::new(30, 1);
        let mut take = seated(&seats);
        let (client, seat) = take().unwrap();
        hang_up(client, &seat);
        assert!(take().is_none(), "nothing was asked, and the thread may be at work on a handshake");
        assert!(seat.answering() && take().is_none(), "it costs as much as one who stays");
        seat.answered();
        assert!(take().is_some());
    }

    #[test]
    fn who_has_hung_up_and_does_not_read_the_answer_is_counted() {
        let seats = Seats::new(30, 1);
        let mut take = seated(&seats);
        let (client, seat) = take().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(seat.answering());
        seat.answered();
        let mut socket = &*seat.socket;
        socket.set_nonblocking(true).unwrap();
        // The other end takes its share a little later.
        let moment = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
        while poll(&mut [PollFd::new(&*seat.socket, PollFlags::OUT)], Some(&moment)) == Ok(1) {
            while std::io::Write::write(&mut socket, &[0; 1 << 16]).is_ok() {}
        }
        assert!(take().is_none(), "the thread waits for the client");
        drop(client);
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&seat.socket, PollFlags::empty())], Some(&patience)), Ok(1), "it is reset");
        assert!(take().is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut socket = sockets();
        let seats = Seats::new(9, 1);
        let mut take = |peer: &str| seats.take(socket(), peer.parse().unwrap()).ok();
        let first = take("2001:db8::1");
        assert!(first.is_some() && take("2001:db8::2").is_none() && take("2001:db8:0:1::1").is_some());
    }

    #[test]
    fn in_a_crowd_the_share_of_an_address_shrinks() {
        let seats = Seats::new(512, 64);
        let shares = [0, 256, 257, 512].map(|taken| seats.share(taken));
        assert_eq!(shares, [64, 64, 16, 16]);
        assert_eq!(Seats::new(2, 1).share(2), 1, "never nothing");
    }

    #[test]
    fn a_newcomer_gets_the_seat_of_the_address_with_most_requests_unfinished_and_there_of_the_oldest() {
        let mut socket = sockets();
        let seats = Seats::new(6, 16);
        let mut take = |last: u8| seats.take(socket(), [10, 0, 0, last].into());
        // 1 has the most seats, but those are being answered; 2 has most of those that are not; 3 came before 2.
        let mut seated: Vec<Seat> = [3, 1, 1, 1, 2, 2].map(|last| take(last).unwrap().0).into();
        seated[1..4].iter().for_each(|seat| assert!(seat.answering()));
        seated[4].arriving();
        let (newcomer, left) = take(4).unwrap();
        assert_eq!(left, Some([10, 0, 0, 2].into()));
        assert!(!seated[4].answering() && seated[5].answering(), "the older of the two is out");
        assert_eq!(seats.taken(), 6);
        drop(seated.remove(4));
        assert_eq!(seats.taken(), 6, "a lost seat is not given back twice");
        let (_last, left) = take(5).unwrap();
        assert_eq!(left, Some([10, 0, 0, 3].into()), "all have one now, and this is the oldest");
        assert!(newcomer.answering());
        assert!(take(6).unwrap().1.is_some());
        assert!(seated.iter().skip(1).all(Seat::answering), "who is being answered stays");
    }

    #[test]
    fn nobody_is_put_out_while_being_answered() {
        let mut socket = sockets();
        let seats = Seats::new(2, 4);
        let mut take = |last: u8| seats.take(socket(), [10, 0, 0, last].into());
        let (a, b) = (take(1).unwrap().0, take(2).unwrap().0);
        assert!(a.answering() && b.answering() && take(3).is_err());
        a.idle();
        assert_eq!(take(3).unwrap().1, Some([10, 0, 0, 1].into()));
    }
}
