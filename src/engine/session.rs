//! A session: what one RG.PYEXECUTE made, and what its functions made later. Contract: `commands.md` chapter 4.

use std::{any::Any, sync::OnceLock};

use parking_lot::Mutex;

use super::id::Id;

/// One session. Listed in the registry while it has registrations, or kept executions of them.
pub struct Session {
    pub id: String,
    pub description: Option<String>,
    members: Mutex<Members>,
    /// What the language keeps for it.
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
}

#[derive(Default)]
struct Members {
    registrations: Vec<Id>,
    executions: usize,
}

impl Session {
    pub fn new(id: String, description: Option<String>) -> Self {
        Self {
            id,
            description,
            members: Mutex::default(),
            attachment: OnceLock::new(),
        }
    }

    /// What the language keeps for this session; made by `make` when first asked for, always of the same type.
    pub fn attachment<T: Clone + Send + Sync + 'static>(&self, make: impl Fn() -> T) -> T {
        let kept = self.attachment.get_or_init(|| Box::new(make()));
        kept.downcast_ref().cloned().unwrap_or_else(make)
    }

    /// True if `id` is made of letters, digits, `_` and `-`; the empty id is one too.
    pub fn is_valid_id(id: &[u8]) -> bool {
        id.iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    }

    pub fn registrations(&self) -> Vec<Id> {
        self.members.lock().registrations.clone()
    }

    /// Registrations and executions that belong to the session now.
    pub fn ref_count(&self) -> usize {
        let members = self.members.lock();
        members.registrations.len() + members.executions
    }

    pub(super) fn add_registration(&self, id: Id) {
        self.members.lock().registrations.push(id);
    }

    pub(super) fn remove_registration(&self, id: Id) {
        self.members.lock().registrations.retain(|&known| known != id);
    }

    pub(super) fn add_execution(&self) {
        self.members.lock().executions += 1;
    }

    pub(super) fn remove_execution(&self) {
        self.members.lock().executions -= 1;
    }
}
