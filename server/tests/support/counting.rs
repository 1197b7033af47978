//! An allocator that counts what it has given out, for tests of memory. Nothing is timed or sampled.
#![expect(unsafe_code, reason = "an allocator cannot be written otherwise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, and how many bytes it has given out.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
/// The most of them at once.
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = HELD.fetch_add(layout.size(), Ordering::Relaxed);
        MOST.fetch_max(before + layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are given out.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub now: usize,
    /// The most since it was asked last.
    pub most: usize,
}

pub fn held() -> Held {
    let now = HELD.load(Ordering::Relaxed);
    let most = MOST.swap(now, Ordering::Relaxed);
    Held { now, most }
}
