//! The allocator: takes from one block and gives nothing back.
//!
//! The program runs once and briefly. What it needs is bounded: the names of at most 4096 nodes, one request, one
//! answer and one text to print are 4 MB for the largest job there can be, and all attempts share their buffer. An
//! allocator that frees would be a sixth of the program. Pages of the block that are never touched cost nothing.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

const SIZE: usize = 16 * 1024 * 1024;

#[global_allocator]
static BLOCK: Block = Block { used: UnsafeCell::new(0), bytes: UnsafeCell::new([0; SIZE]) };

#[repr(C, align(16))]
struct Block {
    bytes: UnsafeCell<[u8; SIZE]>,
    used: UnsafeCell<usize>,
}

// SAFETY: the program has one thread and no signal handlers.
unsafe impl Sync for Block {}

// SAFETY: what is given out lies in the block, is aligned, since the block is for all that we ask for, and is given once.
unsafe impl GlobalAlloc for Block {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, so nobody else looks at `used` meanwhile.
        let used = unsafe { &mut *self.used.get() };
        let start = used.next_multiple_of(layout.align());
        if layout.size() > SIZE - start {
            return ptr::null_mut();
        }
        *used = start + layout.size();
        // SAFETY: `start` is at most `SIZE`.
        unsafe { self.bytes.get().cast::<u8>().add(start) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}

    /// Lets the youngest grow in its place: buffers that grow are mostly that.
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: one thread; `old` lies in the block.
        unsafe {
            let start = old.addr() - self.bytes.get().addr();
            if start + layout.size() == *self.used.get() && size <= SIZE - start {
                *self.used.get() = start + size;
                return old;
            }
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(old, new, layout.size().min(size));
            }
            new
        }
    }
}
