//! The allocator: the server's own, so that `INFO memory` and `maxmemory` see what the module holds.
//!
//! Servers are built with an allocator that aligns to 8 bytes: blocks whose size is a multiple of 16 are aligned to 16,
//! others are not. Stricter layouts (cache-padded queues) are aligned here.
//! Outside a server (unit tests), and where a sanitizer is to see each block, the system allocator serves.

use std::alloc::{GlobalAlloc, Layout, System};

use redis_module::raw;

use super::heap::SANITIZED;

/// The strictest alignment that the server's allocator can be made to give.
const NATURAL_ALIGN: usize = 16;
/// What it gives for any size.
const ANY_SIZE_ALIGN: usize = 8;

/// A size for which the server's allocator aligns as `layout` asks, at most to [`NATURAL_ALIGN`].
fn aligned_size(layout: Layout, size: usize) -> usize {
    if layout.align() <= ANY_SIZE_ALIGN {
        size
    } else {
        size.next_multiple_of(NATURAL_ALIGN)
    }
}

/// Allocates through `RedisModule_Alloc` where there is a server.
pub struct ServerAlloc;

// The word before a block is aligned, because blocks are aligned to at least 16 bytes.
#[allow(clippy::cast_ptr_alignment)]
// SAFETY: blocks come from one allocator for the whole life of the process, because the function table is
// filled before anything is allocated (the first statement of `RedisModule_OnLoad`) or never.
unsafe impl GlobalAlloc for ServerAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see the impl; sizes are those of the layout.
        unsafe {
            let Some(alloc) = raw::RedisModule_Alloc.filter(|_| !SANITIZED) else {
                return System.alloc(layout);
            };
            if layout.align() <= NATURAL_ALIGN {
                return alloc(aligned_size(layout, layout.size())).cast();
            }
            // Room to shift by up to `align` bytes; the word before the block remembers the start.
            let start = alloc(layout.size() + layout.align() + size_of::<usize>()).cast::<u8>();
            let first = start as usize + size_of::<usize>();
            let block = start.add(first.next_multiple_of(layout.align()) - start as usize);
            block.cast::<usize>().sub(1).write(start as usize);
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from `alloc` with the same layout.
        unsafe {
            let Some(free) = raw::RedisModule_Free.filter(|_| !SANITIZED) else {
                return System.dealloc(block, layout);
            };
            if layout.align() <= NATURAL_ALIGN {
                free(block.cast());
            } else {
                free(block.cast::<usize>().sub(1).read() as *mut _);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is that of the trait; the new layout has the same alignment.
        unsafe {
            match raw::RedisModule_Realloc.filter(|_| !SANITIZED) {
                Some(realloc) if layout.align() <= NATURAL_ALIGN => {
                    realloc(block.cast(), aligned_size(layout, size)).cast()
                }
                Some(_) => {
                    let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                    self.dealloc(block, layout);
                    moved
                }
                None => System.realloc(block, layout, size),
            }
        }
    }
}
