//! What Python keeps for a session: the globals of its script, which live as long as it does, and its profilers.

use std::sync::Arc;

use pyo3::types::PyDict;

use super::{attach::ObjectRef, profile::Profilers};
use crate::{engine::session::Session, mutex::Mutex};

/// Kept by the session.
#[derive(Default)]
pub struct Kept {
    pub globals: Mutex<Option<ObjectRef<PyDict>>>,
    pub profilers: Profilers,
}

/// What is kept for `session`.
pub fn kept(session: &Session) -> Arc<Kept> {
    session.attachment(|| Arc::new(Kept::default()))
}
