//! The readers: where records come from. Each has a batch side (`run`) and an event side (`register`).

pub mod glob;
pub mod keys;
pub mod keys_scan;
pub mod prefix;
