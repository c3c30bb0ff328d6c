//! What Python keeps for a session: the globals of its script, which live as long as it does, and its profilers.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::{prelude::*, types::PyDict};

use super::profile::Profilers;
use crate::engine::session::Session;

/// Kept by the session.
#[derive(Default)]
pub struct Kept {
    pub globals: Mutex<Option<Py<PyDict>>>,
    pub profilers: Profilers,
}

/// What is kept for `session`.
pub fn kept(session: &Session) -> Arc<Kept> {
    session.attachment(|| Arc::new(Kept::default()))
}
