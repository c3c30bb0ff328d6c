//! What `benches/inner.rs` measures by itself: the small things that run for each command, key or event. Only with the feature
//! `bench`, which also leaves the server's allocator out.

pub use crate::{
    engine::prefix::Pattern,
    persistence::RegistrationChange,
    readers::{glob::matches as glob, streams::entries::EntryId},
    stats::{Ending, RunStats},
};
