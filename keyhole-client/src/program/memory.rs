//! The allocator: musl's.

use core::alloc::{GlobalAlloc, Layout};

struct Malloc;

#[global_allocator]
static MALLOC: Malloc = Malloc;

// SAFETY: musl's memory is aligned for 16 bytes, and nothing here asks for more.
unsafe impl GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size will do.
        unsafe { libc::malloc(layout.size()).cast() }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _: Layout) {
        // SAFETY: the pointer is one of ours.
        unsafe { libc::free(pointer.cast()) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, _: Layout, size: usize) -> *mut u8 {
        // SAFETY: the pointer is one of ours.
        unsafe { libc::realloc(pointer.cast(), size).cast() }
    }
}
