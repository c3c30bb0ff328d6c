//! What the standard library would have: memory, paths, a child process.

use alloc::{ffi::CString, string::String, vec::Vec};
use core::{ffi::CStr, mem::MaybeUninit, ptr};

#[cfg(not(test))]
mod runtime {
    use core::{
        alloc::{GlobalAlloc, Layout},
        ffi::c_void,
        panic::PanicInfo,
        ptr,
    };

    struct Malloc;

    // SAFETY: blocks come from malloc, which aligns to 16 bytes, or from posix_memalign; free takes both.
    unsafe impl GlobalAlloc for Malloc {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if layout.align() <= 16 {
                // SAFETY: always allowed.
                return unsafe { libc::malloc(layout.size()).cast() };
            }
            let mut block: *mut c_void = ptr::null_mut();
            // SAFETY: the alignment is a power of two above the size of a pointer.
            match unsafe { libc::posix_memalign(&raw mut block, layout.align(), layout.size()) } {
                0 => block.cast(),
                _ => ptr::null_mut(),
            }
        }

        unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
            // SAFETY: the caller gives back what came from here.
            unsafe { libc::free(block.cast()) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Malloc = Malloc;

    /// Reached only by an error of ours: nothing here indexes or unwraps.
    #[panic_handler]
    fn panic(_info: &PanicInfo<'_>) -> ! {
        // SAFETY: always allowed.
        unsafe { libc::abort() }
    }

    /// The precompiled `alloc` names these two, nothing calls them.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}

    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Resume() -> ! {
        // SAFETY: always allowed.
        unsafe { libc::abort() }
    }
}

/// A text for C; without what stands behind a NUL.
pub fn c_string(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}

/// The path without links, if there is such a file.
pub fn real_path(path: &str) -> Option<String> {
    let path = c_string(path);
    // SAFETY: a null buffer asks for a new one, which is given back.
    unsafe {
        let real = libc::realpath(path.as_ptr(), ptr::null_mut());
        if real.is_null() {
            return None;
        }
        let text = CStr::from_ptr(real).to_string_lossy().into_owned();
        libc::free(real.cast());
        Some(text)
    }
}

pub fn exists(path: &str) -> bool {
    // SAFETY: the path is a text.
    unsafe { libc::access(c_string(path).as_ptr(), libc::F_OK) == 0 }
}

/// The first `N` bytes of a file; `None` if it cannot be read or is shorter.
pub fn head<const N: usize>(path: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the buffer has the length that is told.
    unsafe {
        let file = libc::open(c_string(path).as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return None;
        }
        let read = libc::read(file, bytes.as_mut_ptr().cast(), N);
        libc::close(file);
        (usize::try_from(read) == Ok(N)).then_some(bytes)
    }
}

/// The names in a folder, sorted.
pub fn names(folder: &str) -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: entries are read before the next call, and the folder is closed.
    unsafe {
        let open = libc::opendir(c_string(folder).as_ptr());
        while !open.is_null() {
            let entry = libc::readdir(open);
            if entry.is_null() {
                libc::closedir(open);
                break;
            }
            names.push(
                CStr::from_ptr((*entry).d_name.as_ptr())
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    names.sort();
    names
}

/// The text of an error number.
pub fn error_text(number: i32) -> String {
    // SAFETY: the text is copied at once; nobody else asks for one while a module loads.
    unsafe { CStr::from_ptr(libc::strerror(number)) }
        .to_string_lossy()
        .into_owned()
}

/// How long a program may take, in milliseconds.
const PATIENCE_MS: i64 = 30_000;

/// What a program writes, on both of its outputs, until it ends. It is looked for in PATH if it has no slash.
///
/// # Errors
/// It could not be started, or does not end.
pub fn output(words: &[&str]) -> Result<String, String> {
    let words: Vec<CString> = words.iter().map(|word| c_string(word)).collect();
    let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    argv.push(ptr::null_mut());
    // SAFETY: the structures are initialised before use and destroyed after it; descriptors are closed once.
    unsafe {
        let mut ends = [0; 2];
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err("no pipe could be made".into());
        }
        let [reading, writing] = ends;
        let mut actions = MaybeUninit::zeroed();
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
        libc::posix_spawn_file_actions_addopen(
            actions.as_mut_ptr(),
            0,
            c"/dev/null".as_ptr(),
            libc::O_RDONLY,
            0,
        );
        libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), writing, 1);
        libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), writing, 2);
        let mut child = 0;
        let (program, words, variables) = (argv[0], argv.as_ptr(), environment());
        let status = libc::posix_spawnp(
            &raw mut child,
            program,
            actions.as_ptr(),
            ptr::null(),
            words,
            variables,
        );
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        libc::close(writing);
        if status != 0 {
            libc::close(reading);
            return Err(error_text(status));
        }
        let text = read_all(reading);
        libc::close(reading);
        if text.is_none() {
            libc::kill(child, libc::SIGKILL);
        }
        libc::waitpid(child, ptr::null_mut(), 0);
        text.ok_or_else(|| "it did not answer within 30 seconds".into())
    }
}

/// All that comes; `None` when time is over.
///
/// # Safety
/// `reading` is an open descriptor.
unsafe fn read_all(reading: i32) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = [0_u8; 4096];
    let begin = now_ms();
    loop {
        let left = PATIENCE_MS - (now_ms() - begin);
        let mut wanted = libc::pollfd {
            fd: reading,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure, and a buffer of the length that is told.
        let read = unsafe {
            if left <= 0 || libc::poll(&raw mut wanted, 1, i32::try_from(left).unwrap_or(0)) == 0 {
                return None;
            }
            libc::read(reading, buffer.as_mut_ptr().cast(), buffer.len())
        };
        match usize::try_from(read) {
            Ok(0) => return Some(String::from_utf8_lossy(&text).into_owned()),
            Ok(length) => text.extend(buffer.iter().take(length)),
            // A signal came.
            Err(_) => {}
        }
    }
}

fn now_ms() -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// The server's environment. Some servers (Valkey 8.1) open modules so that these find the symbols of libraries first,
/// and see a variable `environ` that nobody has set: the server's own stands behind the handle of the program.
fn environment() -> *const *mut libc::c_char {
    // SAFETY: the symbol is a variable of that type wherever it exists.
    unsafe {
        let program = libc::dlopen(ptr::null(), libc::RTLD_NOW);
        let variable: *const *const *mut libc::c_char = libc::dlsym(program, c"environ".as_ptr()).cast();
        if variable.is_null() {
            ptr::null()
        } else {
            *variable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_heard() {
        let text = output(&["sh", "-c", "echo out; echo err >&2"]);
        assert_eq!(text.as_deref(), Ok("out\nerr\n"));
        assert!(output(&["/nowhere/python"]).is_err());
    }

    #[test]
    fn files_are_read_as_far_as_asked() {
        assert_eq!(head::<4>("/proc/self/exe"), Some(*b"\x7fELF"));
        assert_eq!(head::<1>("/nowhere"), None);
    }
}
