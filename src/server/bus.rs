//! The bus between the nodes of a Redis Cluster: small messages that only nodes can send. Not reliable; whoever needs an
//! answer asks again.

use std::{
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
    sync::OnceLock,
};

use redis_module::raw;

use super::lock::{Entered, Lock};

/// The length of a node's id.
const ID: usize = 40;

/// The C form of a function that gets messages.
pub type Receiver = unsafe extern "C" fn(*mut raw::RedisModuleCtx, *const c_char, u8, *const u8, u32);

/// True if this server is a node of a Redis Cluster, also while it is the only one. It is one from its start on, or never.
pub fn is_cluster_node(lock: Lock<'_>) -> bool {
    static IS_NODE: OnceLock<bool> = OnceLock::new();
    *IS_NODE.get_or_init(|| lock.server_flags() & raw::REDISMODULE_CTX_FLAGS_CLUSTER != 0)
}

/// Asks for messages of type `kind`. Nothing happens on a server that is no node.
pub fn subscribe(lock: Lock<'_>, kind: u8, receiver: Receiver) {
    if !has_api!(RedisModule_RegisterClusterMessageReceiver) {
        return;
    }
    // SAFETY: the context names our module; the function lives as long as it.
    unsafe {
        api!(RedisModule_RegisterClusterMessageReceiver(
            lock.call_context(0),
            kind,
            Some(receiver)
        ));
    }
}

/// Sends a message to the node `to`, if there is a link to it now.
pub fn send(lock: Lock<'_>, to: &str, kind: u8, message: &[u8]) {
    let Ok(to) = CString::new(to) else { return };
    if !has_api!(RedisModule_SendClusterMessage) || to.as_bytes().len() != ID {
        return;
    }
    // SAFETY: the context names our module; the server copies the message. Whether it went out cannot be known.
    unsafe {
        api!(RedisModule_SendClusterMessage(
            lock.call_context(0),
            to.as_ptr(),
            kind,
            message.as_ptr().cast(),
            message.len() as u32
        ));
    }
}

/// The frame around a receiver: proof of the lock, no panic leaves it. `work` gets the sender's id and the message.
///
/// # Safety
/// To be called by a receiver with the server's own arguments.
pub unsafe fn run(
    sender: *const c_char,
    message: *const u8,
    length: u32,
    work: impl FnOnce(Lock<'_>, &[u8], &[u8]),
) {
    if sender.is_null() {
        return;
    }
    // SAFETY: the server holds its lock while it calls a receiver; ids have 40 characters, without an end mark.
    unsafe {
        let entered = Entered::new();
        let sender = slice::from_raw_parts(sender.cast(), ID);
        let message = if message.is_null() {
            &[]
        } else {
            slice::from_raw_parts(message, length as usize)
        };
        // A panic loses this message only; the panic hook has logged it.
        let _ = catch_unwind(AssertUnwindSafe(|| work(entered.lock(), sender, message)));
    }
}
