//! Python's memory: taken from the server's allocator, so that `INFO memory` and `maxmemory` see it, and counted for
//! RG.PYSTATS (docs/contract/commands.md 1.16).
//!
//! Small objects live in arenas of Python's own allocator; arenas and everything bigger come through here.

use std::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use pyo3::ffi;

use crate::server::heap;

static TOTAL: AtomicU64 = AtomicU64::new(0);
static CURRENT: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

/// Bytes of memory; all zero where Python has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Ever taken.
    pub total: u64,
    /// The most that was held at one time.
    pub peak: u64,
    /// Held now.
    pub current: u64,
}

pub fn figures() -> Figures {
    Figures {
        total: TOTAL.load(Ordering::Relaxed),
        peak: PEAK.load(Ordering::Relaxed),
        current: CURRENT.load(Ordering::Relaxed),
    }
}

/// Makes Python take its memory from the server, where the server lets a module be told that there is none.
///
/// # Safety
/// Called once, between Python's pre-initialisation and its initialisation.
pub unsafe fn take_from_server() {
    if !heap::is_offered() {
        return;
    }
    let mut raw = ffi::PyMemAllocatorEx {
        ctx: ptr::null_mut(),
        malloc: Some(malloc),
        calloc: Some(calloc),
        realloc: Some(realloc),
        free: Some(free),
    };
    let mut arenas = ffi::PyObjectArenaAllocator {
        ctx: ptr::null_mut(),
        alloc: Some(alloc_arena),
        free: Some(free_arena),
    };
    // SAFETY: by the caller's promise; Python copies both structures. Its other domains stand on these two.
    unsafe {
        ffi::PyMem_SetAllocator(ffi::PyMemAllocatorDomain::PYMEM_DOMAIN_RAW, &raw mut raw);
        ffi::PyObject_SetArenaAllocator(&raw mut arenas);
    }
}

/// # Safety
/// `block` is null or a live block of the server's.
unsafe fn count(block: *mut c_void) -> *mut c_void {
    if !block.is_null() {
        // SAFETY: by the caller's promise.
        let size = unsafe { heap::size_of_block(block) } as u64;
        TOTAL.fetch_add(size, Ordering::Relaxed);
        let held = CURRENT.fetch_add(size, Ordering::Relaxed) + size;
        PEAK.fetch_max(held, Ordering::Relaxed);
    }
    block
}

extern "C" fn malloc(_ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the block is new.
    unsafe { count(heap::allocate(size)) }
}

extern "C" fn calloc(_ctx: *mut c_void, elements: usize, size: usize) -> *mut c_void {
    // SAFETY: the block is new.
    unsafe { count(heap::allocate_zeroed(elements, size)) }
}

extern "C" fn realloc(ctx: *mut c_void, block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: Python passes null or a live block that came from here.
    unsafe {
        if block.is_null() {
            return malloc(ctx, size);
        }
        let before = heap::size_of_block(block) as u64;
        let moved = count(heap::reallocate(block, size));
        if !moved.is_null() {
            CURRENT.fetch_sub(before, Ordering::Relaxed);
        }
        moved
    }
}

extern "C" fn free(_ctx: *mut c_void, block: *mut c_void) {
    if !block.is_null() {
        // SAFETY: Python gives back a live block that came from here.
        unsafe {
            CURRENT.fetch_sub(heap::size_of_block(block) as u64, Ordering::Relaxed);
            heap::free(block);
        }
    }
}

extern "C" fn alloc_arena(ctx: *mut c_void, size: usize) -> *mut c_void {
    malloc(ctx, size)
}

extern "C" fn free_arena(ctx: *mut c_void, arena: *mut c_void, _size: usize) {
    free(ctx, arena);
}
