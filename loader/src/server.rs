//! The two functions of the module API that are needed before the module itself has the others.

use alloc::{string::String, vec::Vec};
use core::{
    ffi::{CStr, c_char, c_int, c_void},
    mem, ptr, slice,
};

use crate::system;

type GetApi = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
type Log = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, ...);
type StringPtrLen = unsafe extern "C" fn(*const c_void, *mut usize) -> *const c_char;

/// The server, as seen from a module that it loads.
pub struct Server {
    ctx: *mut c_void,
    get_api: GetApi,
}

impl Server {
    /// # Safety
    /// `ctx` is the context of `RedisModule_OnLoad`: it begins with the function that gives all others.
    pub unsafe fn new(ctx: *mut c_void) -> Self {
        // SAFETY: by the caller's promise.
        let get_api = unsafe { mem::transmute::<*mut c_void, GetApi>(*ctx.cast()) };
        Self { ctx, get_api }
    }

    /// A function of the module API; null if this server has none of that name.
    fn function(&self, name: &CStr) -> *mut c_void {
        let mut function = ptr::null_mut();
        // SAFETY: the server fills the pointer or leaves it.
        unsafe { (self.get_api)(name.as_ptr(), &raw mut function) };
        function
    }

    /// Writes one line to the server's log.
    pub fn warn(&self, text: &str) {
        let function = self.function(c"RedisModule_Log");
        if function.is_null() {
            return;
        }
        let line = system::c_string(&text.replace('\n', " "));
        // SAFETY: the function has that type; the text is no format.
        unsafe {
            let log = mem::transmute::<*mut c_void, Log>(function);
            log(self.ctx, c"warning".as_ptr(), c"%s".as_ptr(), line.as_ptr());
        }
    }

    /// The module arguments.
    ///
    /// # Safety
    /// `argv` and `argc` are those of `RedisModule_OnLoad`.
    pub unsafe fn arguments(&self, argv: *mut *mut c_void, argc: c_int) -> Vec<String> {
        let function = self.function(c"RedisModule_StringPtrLen");
        if function.is_null() || argv.is_null() {
            return Vec::new();
        }
        // SAFETY: by the caller's promise; the function has that type, and its texts live as long as the arguments.
        unsafe {
            let text_of = mem::transmute::<*mut c_void, StringPtrLen>(function);
            let words = slice::from_raw_parts(argv, usize::try_from(argc).unwrap_or(0));
            let text = |word: &*mut c_void| {
                let mut length = 0;
                let start = text_of(*word, &raw mut length);
                String::from_utf8_lossy(slice::from_raw_parts(start.cast(), length)).into_owned()
            };
            words.iter().map(text).collect()
        }
    }
}
