//! The server's side of the house: the only room that calls the module API.
//!
//! Everything `unsafe` about Redis and Valkey is in here, behind types that say what is held:
//! [`lock::Lock`] proves that the server's lock is held, [`command::Command`] is a running command,
//! [`client::BlockedClient`] a client that waits for exactly one reply. The rooms above name no raw pointer.

#[macro_use]
pub mod api;
pub mod after;
#[cfg(not(any(test, feature = "bench")))]
pub mod alloc;
pub mod asking;
pub mod audience;
pub mod bus;
pub mod call;
pub mod call_reply;
pub mod client;
pub mod closing;
pub mod command;
pub mod current;
pub mod datatype;
mod entry;
pub mod events;
pub mod fields;
pub mod figures;
pub mod filter;
mod flush;
pub mod guarded;
pub mod heap;
pub mod home;
pub mod info;
pub mod key;
mod listpack;
pub mod load;
pub mod lock;
pub mod options;
pub mod own_thread;
mod parts;
pub mod persist;
mod refused;
pub mod reply;
pub mod rights;
pub mod room;
pub mod script_call;
pub mod script_engine;
pub mod slots;
pub mod snapshot;
pub mod store;
pub mod string;
mod syntax;
mod text;
pub mod version;
pub mod waiting;
pub mod walk;

/// The raw bindings, for signatures only: calls go through [`api!`].
pub use redis_module::raw;
