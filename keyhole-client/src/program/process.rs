//! What the system gives to a process: words, variables, outputs, chance.

use super::Words;
use core::ffi::{CStr, c_char, c_int};

/// The words behind the program's name. A word that is no text becomes `?`, which is right nowhere.
///
/// # Safety
/// `words` must be what C's `main` gets, with `count` words that live as long as the process.
pub unsafe fn words(count: c_int, words: *const *const c_char) -> Words {
    // SAFETY: as promised.
    let word = |index| unsafe { text(*words.add(index)) };
    (1..usize::try_from(count).unwrap_or(0)).map(word).collect()
}

/// A variable of the environment; `?` if it is no text, which is right nowhere.
pub fn variable(name: &CStr) -> Option<&'static str> {
    // SAFETY: nothing changes the environment but `wipe_variable`, which says what it needs.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: a value that is there ends with a zero byte and lives as long as the process.
    (!value.is_null()).then(|| unsafe { text(value) })
}

/// Overwrites the value of a variable, so that it can no longer be read from the process's environment.
///
/// The value must not be in use: what [`variable`] gave for this name changes under its reader.
pub fn wipe_variable(name: &CStr) {
    // SAFETY: the environment is writable memory of ours, and each value ends with a zero byte.
    unsafe {
        let mut value = libc::getenv(name.as_ptr());
        while !value.is_null() && *value != 0 {
            // Volatile, because nobody reads it afterwards.
            value.write_volatile(b'0' as c_char);
            value = value.add(1);
        }
    }
}

/// # Safety
/// The pointer must be to bytes that end with a zero and live as long as the process.
unsafe fn text(pointer: *const c_char) -> &'static str {
    // SAFETY: as promised.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap_or("?")
}

/// Lets a write to a closed pipe fail, instead of ending the process without a word.
pub fn ignore_closed_pipes() {
    // The kernel's own structure, of which all is zero but its first word; musl's `signal` would bring its locks along.
    let mut action = [0_usize; 8];
    action[0] = libc::SIG_IGN;
    let nothing = core::ptr::null_mut::<usize>();
    // SAFETY: the structure is smaller than what is passed; no handler is installed.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, libc::SIGPIPE, action.as_ptr(), nothing, 8_usize) };
}

/// Writes all bytes, and says whether that worked.
pub fn write_all(file: c_int, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are of one slice.
        let written = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(_) if error_number() == libc::EINTR => {}
            Err(_) => return false,
        }
    }
    true
}

/// One line on standard error.
pub fn complain(message: &str) {
    for part in ["keyhole-client: ", message, "\n"] {
        write_all(libc::STDERR_FILENO, part.as_bytes());
    }
}

/// Fills the buffer from the system's generator, and says whether that worked.
pub fn fill_randomly(buffer: &mut [u8]) -> bool {
    // SAFETY: the pointer and the length are of one slice. So few bytes come in one piece or not at all.
    let count = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(count) == Ok(buffer.len())
}

/// Why the system call before failed.
pub fn error_number() -> c_int {
    // SAFETY: it is always there.
    unsafe { *libc::__errno_location() }
}

/// Ends the process.
pub fn exit(status: c_int) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(status) }
}
