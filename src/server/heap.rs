//! The server's allocator for those who can live with a refusal: it answers null where the other one ends the process.
//!
//! Called on any thread, also without the server's lock.

use std::ffi::c_void;

/// Built for a sanitizer, which knows the blocks of the system's allocator only.
pub const SANITIZED: bool = cfg!(feature = "sanitized");

/// True if the server offers all of it (7.0), and a sanitizer need not see the blocks.
pub fn is_offered() -> bool {
    !SANITIZED && has_api!(RedisModule_TryAlloc) && has_api!(RedisModule_MallocSize)
}

/// From this size on it is asked whether the machine has that much at all.
const LARGE: usize = 1 << 26;

/// True if the machine cannot have that much. The server's allocator reserves address space without asking the kernel,
/// which then kills the process when the memory is used.
fn is_beyond_the_machine(size: usize) -> bool {
    if size < LARGE {
        return false;
    }
    // SAFETY: asks for constants of the system.
    let (pages, page) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    match (usize::try_from(pages), usize::try_from(page)) {
        (Ok(pages), Ok(page)) => size > pages.saturating_mul(page),
        _ => false,
    }
}

/// A size for which the server's allocator aligns as `malloc` does: to 16 bytes. It aligns odd ones to 8 only.
fn aligned_size(size: usize) -> usize {
    size.max(1).next_multiple_of(16)
}

/// A new block, null if there is no memory. Aligned as `malloc` does it.
pub fn allocate(size: usize) -> *mut c_void {
    if is_beyond_the_machine(size) {
        return std::ptr::null_mut();
    }
    // SAFETY: the caller has asked `is_offered`.
    unsafe { api!(RedisModule_TryAlloc(aligned_size(size))) }
}

/// A new block of zeros.
pub fn allocate_zeroed(count: usize, size: usize) -> *mut c_void {
    let total = match count.checked_mul(size) {
        Some(total) if !is_beyond_the_machine(total) => total,
        _ => return std::ptr::null_mut(),
    };
    if has_api!(RedisModule_TryCalloc) {
        // SAFETY: the presence of the function was just checked.
        return unsafe { api!(RedisModule_TryCalloc(1, aligned_size(total))) };
    }
    let block = allocate(total);
    if !block.is_null() {
        // SAFETY: the block has at least that size.
        unsafe { block.write_bytes(0, total) };
    }
    block
}

/// The size of a block as the server counts it.
///
/// # Safety
/// `block` came from here and is alive.
pub unsafe fn size_of_block(block: *mut c_void) -> usize {
    // SAFETY: by the caller's promise.
    unsafe { api!(RedisModule_MallocSize(block)) }
}

/// Moves a block to one of another size; null if there is no memory, then the old one stays.
///
/// # Safety
/// `block` came from here and is alive.
pub unsafe fn reallocate(block: *mut c_void, size: usize) -> *mut c_void {
    if is_beyond_the_machine(size) {
        return std::ptr::null_mut();
    }
    let in_one_go = has_api!(RedisModule_TryRealloc);
    // SAFETY: by the caller's promise; the presence of the optional function was checked.
    unsafe {
        if in_one_go {
            return api!(RedisModule_TryRealloc(block, aligned_size(size)));
        }
        let moved = allocate(size);
        if !moved.is_null() {
            moved.copy_from_nonoverlapping(block, size_of_block(block).min(size));
            free(block);
        }
        moved
    }
}

/// Gives a block back.
///
/// # Safety
/// `block` came from here and is used no more.
pub unsafe fn free(block: *mut c_void) {
    // SAFETY: by the caller's promise.
    unsafe { api!(RedisModule_Free(block)) };
}
