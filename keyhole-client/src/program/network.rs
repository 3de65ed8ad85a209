//! The library's transport: one non-blocking socket, `poll`, and the clock.

use super::process::error_number;
use core::ffi::c_int;
use core::net::SocketAddr;
use core::{mem, ptr};
use keyhole_client::{Fault, Transport};

/// One connection, or none.
#[derive(Default)]
pub struct Network {
    socket: Option<c_int>,
}

impl Transport for Network {
    fn now(&self) -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a value of ours. This clock is always there. A plain system call, since musl's
        // function brings a search for a faster way along.
        unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) };
        time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
    }

    fn pause(&mut self, milliseconds: u64) {
        let end = self.now().saturating_add(milliseconds);
        while self.now() < end {
            // SAFETY: there are no descriptors to look at.
            unsafe { libc::poll(ptr::null_mut(), 0, self.time_left(end)) };
        }
    }

    fn connect(&mut self, address: SocketAddr, deadline: u64) -> Result<(), Fault> {
        self.disconnect();
        let address = Address::from(address);
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: plain numbers.
        let socket = unsafe { libc::socket(address.family(), kind, 0) };
        if socket < 0 {
            return Err(last_fault());
        }
        self.socket = Some(socket);
        // SAFETY: the pointer and the length are of one value.
        if unsafe { libc::connect(socket, address.pointer(), address.length()) } == 0 {
            return Ok(());
        }
        if error_number() != libc::EINPROGRESS {
            return Err(last_fault());
        }
        self.wait(libc::POLLOUT, deadline)?;
        pending_fault(socket)
    }

    fn send(&mut self, bytes: &[u8], deadline: u64) -> Result<usize, Fault> {
        loop {
            let socket = self.wait(libc::POLLOUT, deadline)?;
            // SAFETY: the pointer and the length are of one slice.
            let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0) };
            if let Some(result) = finished(sent) {
                return result;
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: u64) -> Result<usize, Fault> {
        loop {
            let socket = self.wait(libc::POLLIN, deadline)?;
            // SAFETY: the pointer and the length are of one slice.
            let received = unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if let Some(result) = finished(received) {
                return result;
            }
        }
    }

    fn disconnect(&mut self) {
        if let Some(socket) = self.socket.take() {
            // SAFETY: the socket is ours, and forgotten now.
            unsafe { libc::close(socket) };
        }
    }
}

impl Network {
    /// Waits until the socket is ready for this, or broken, and gives it.
    fn wait(&self, events: i16, deadline: u64) -> Result<c_int, Fault> {
        let socket = self.socket.ok_or(Fault::System(libc::ENOTCONN))?;
        loop {
            let mut entry = libc::pollfd { fd: socket, events, revents: 0 };
            // SAFETY: the pointer is to one entry of ours.
            match unsafe { libc::poll(&raw mut entry, 1, self.time_left(deadline)) } {
                0 => return Err(Fault::TimedOut),
                1 => return Ok(socket),
                _ if error_number() == libc::EINTR => {}
                _ => return Err(last_fault()),
            }
        }
    }

    /// Milliseconds until then, as `poll` wants them.
    fn time_left(&self, deadline: u64) -> c_int {
        c_int::try_from(deadline.saturating_sub(self.now())).unwrap_or(c_int::MAX)
    }
}

/// An address as the system wants it.
enum Address {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Address::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: address.ip().to_bits().to_be() },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(address) => Address::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: 0,
            }),
        }
    }
}

impl Address {
    const fn family(&self) -> c_int {
        match self {
            Address::V4(_) => libc::AF_INET,
            Address::V6(_) => libc::AF_INET6,
        }
    }

    const fn pointer(&self) -> *const libc::sockaddr {
        match self {
            Address::V4(address) => ptr::from_ref(address).cast(),
            Address::V6(address) => ptr::from_ref(address).cast(),
        }
    }

    const fn length(&self) -> libc::socklen_t {
        let length = match self {
            Address::V4(address) => mem::size_of_val(address),
            Address::V6(address) => mem::size_of_val(address),
        };
        length as libc::socklen_t
    }
}

/// How the connecting that was under way has ended.
fn pending_fault(socket: c_int) -> Result<(), Fault> {
    let mut number: c_int = 0;
    let mut length = mem::size_of::<c_int>() as libc::socklen_t;
    let value = (&raw mut number).cast();
    // SAFETY: the pointers are to values of ours, of that length.
    let result = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_ERROR, value, &raw mut length) };
    match (result, number) {
        (0, 0) => Ok(()),
        (0, number) => Err(Fault::System(number)),
        _ => Err(last_fault()),
    }
}

/// The result of a system call that moves bytes; `None` if it must be called again.
fn finished(count: isize) -> Option<Result<usize, Fault>> {
    match usize::try_from(count) {
        Ok(count) => Some(Ok(count)),
        Err(_) if matches!(error_number(), libc::EINTR | libc::EAGAIN) => None,
        Err(_) => Some(Err(last_fault())),
    }
}

fn last_fault() -> Fault {
    Fault::System(error_number())
}
