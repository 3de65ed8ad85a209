//! Which ports accept connections: many at once, each with a deadline.

use crate::gateway::{Probe, Target};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::Builder;
use std::time::Duration;

/// How many connections are tried at once.
const THREADS: usize = 32;
/// How many neighbouring ports one thread takes at once: a refusal takes microseconds.
const BATCH: usize = 64;

/// How many names are asked for at once, those that nobody waits for any more among them.
const RESOLVERS: usize = 64;

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// One host and some of its ports.
struct Batch<'a> {
    host: &'a str,
    addresses: &'a [IpAddr],
    ports: Vec<u16>,
}

/// Looks at all targets, in parallel. A host that once did not answer in time is not asked for the rest of its ports.
pub(super) fn probe(targets: &[Target], timeout: Duration) -> Probe {
    let resolved = resolve_all(targets, timeout);
    let found = Mutex::new(Probe::default());
    let mut batches = VecDeque::new();
    for target in targets {
        let Some(addresses) = resolved.get(target.host.as_str()) else {
            lock(&found).unreachable.insert(target.host.clone());
            continue;
        };
        let ports: Vec<u16> = target.ports.ports().collect();
        batches.extend(ports.chunks(BATCH).map(|ports| Batch { host: &target.host, addresses, ports: ports.to_vec() }));
    }
    in_parallel(batches, |batch| look(&batch, timeout, &found));
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Works on all items with a bounded number of threads, this one among them: without any other it takes longer, and that is all.
fn in_parallel<T: Send>(items: VecDeque<T>, work: impl Fn(T) + Sync) {
    let extra = THREADS.min(items.len()).saturating_sub(1);
    let queue = Mutex::new(items);
    let take_all = || {
        while let Some(item) = { lock(&queue).pop_front() } {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..extra {
            let _ = Builder::new().name("probe".into()).stack_size(128 * 1024).spawn_scoped(scope, take_all);
        }
        take_all();
    });
}

fn look(batch: &Batch, timeout: Duration, found: &Mutex<Probe>) {
    for &port in &batch.ports {
        if lock(found).unreachable.contains(batch.host) {
            return;
        }
        match reach(batch.addresses, port, timeout) {
            Ok(_) => lock(found).open.insert((batch.host.to_owned(), port)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
            Err(_) => lock(found).unreachable.insert(batch.host.to_owned()),
        };
    }
}

/// Connects to a host by name or address.
pub(super) fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let addresses = resolve(host)?;
    reach(&addresses, port, timeout)
}

/// Connects to the first address that accepts. The error is `ConnectionRefused` when it is certain that nothing listens: some address
/// refused, and no other one failed in a way that leaves it open.
fn reach(addresses: &[IpAddr], port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let mut worst = io::Error::new(ErrorKind::HostUnreachable, "no address could be tried");
    for &address in addresses {
        match attempt(SocketAddr::new(address, port), timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) if weight(&error) > weight(&worst) => worst = error,
            Err(_) => {}
        }
    }
    Err(worst)
}

/// An address of a family that this machine does not use says least; a silent one leaves everything open.
fn weight(error: &io::Error) -> u8 {
    match error.kind() {
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => 0,
        ErrorKind::ConnectionRefused => 1,
        _ => 2,
    }
}

/// Connects, and not to itself: where nobody listens on a port of this machine from which outgoing connections are made too, the kernel
/// sometimes joins a connection's two ends (a simultaneous open), and the port would seem to accept.
fn attempt(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let mut addresses: Vec<IpAddr> = (host, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    addresses.dedup();
    Ok(addresses)
}

/// The addresses of the hosts that have some and whose resolver answers in time.
fn resolve_all(targets: &[Target], timeout: Duration) -> BTreeMap<&str, Vec<IpAddr>> {
    let hosts: BTreeSet<&str> = targets.iter().map(|target| target.host.as_str()).collect();
    let found = Mutex::new(BTreeMap::new());
    in_parallel(hosts.into_iter().collect(), |host| {
        if let Some(addresses) = resolve_in_time(host, timeout, &UNDER_WAY) {
            lock(&found).insert(host, addresses);
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One thread that asks the resolver, among a limited number: while the resolver hangs, every look would leave some more behind.
struct Resolving(&'static AtomicUsize);

impl Resolving {
    fn begin(under_way: &'static AtomicUsize) -> Option<Self> {
        let before = under_way.fetch_add(1, Ordering::SeqCst);
        // Whoever is one too many counts until it is dropped, which is here.
        let begun = Self(under_way);
        (before < RESOLVERS).then_some(begun)
    }
}

impl Drop for Resolving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The resolver knows no deadline: it gets a thread, which is left to itself when it is late and ends when the resolver gives up.
fn resolve_in_time(host: &str, timeout: Duration, under_way: &'static AtomicUsize) -> Option<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Some(vec![address]);
    }
    let (send, receive) = mpsc::channel();
    let name = host.to_owned();
    let one = Resolving::begin(under_way)?;
    let ask = move || {
        let _one = one;
        send.send(resolve(&name))
    };
    Builder::new().name("resolve".into()).spawn(ask).ok()?;
    receive.recv_timeout(timeout).ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_resolver_that_hangs_keeps_a_limited_number_of_threads() {
        static HERE: AtomicUsize = AtomicUsize::new(0);
        let held: Vec<_> = std::iter::from_fn(|| Resolving::begin(&HERE)).collect();
        assert_eq!(held.len(), RESOLVERS);
        let ask = || resolve_in_time("localhost", Duration::from_secs(5), &HERE);
        assert_eq!(ask(), None);
        drop(held);
        assert!(ask().is_some());
    }

    #[test]
    fn the_error_that_leaves_most_open_wins() {
        let weights = [
            (ErrorKind::HostUnreachable, 0),
            (ErrorKind::NetworkUnreachable, 0),
            (ErrorKind::AddrNotAvailable, 0),
            (ErrorKind::ConnectionRefused, 1),
            (ErrorKind::TimedOut, 2),
            (ErrorKind::PermissionDenied, 2),
        ];
        for (kind, expected) in weights {
            assert_eq!(weight(&kind.into()), expected, "{kind:?}");
        }
    }

    #[test]
    fn any_address_that_accepts_is_enough() {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses: Vec<IpAddr> = ["127.0.0.3", "127.0.0.2"].iter().map(|text| text.parse().unwrap()).collect();
        assert!(reach(&addresses, port, Duration::from_secs(1)).is_ok());
        assert_eq!(reach(&addresses[..1], port, Duration::from_secs(1)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(reach(&[], port, Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_connection_to_itself_is_no_open_port() {
        // Outgoing connections to one port come from all other ports in turn, and sooner or later from that port itself.
        let (lo, hi) = ephemeral();
        let address = SocketAddr::from(([127, 0, 0, 1], lo + (hi - lo) / 4 * 2));
        let times = u32::from(hi - lo);
        let meets_itself = |stream: TcpStream| stream.local_addr().unwrap() == stream.peer_addr().unwrap();
        assert!(
            (0..times * 20).filter_map(|_| TcpStream::connect(address).ok()).any(meets_itself),
            "it happens without the check"
        );
        assert!((0..times * 2).all(|_| attempt(address, Duration::from_secs(1)).is_err()), "{address} seemed to accept");
    }

    fn ephemeral() -> (u16, u16) {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}
