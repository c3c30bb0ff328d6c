//! Whether what the module writes into an AOF file is read again. Most servers load transactions as the default user: one that may not
//! run everything loses what stands in them. The module writes transactions wherever a change and what follows from it belong together.

use super::Persistence;
use crate::server::{
    api,
    asking::{config, may_run_everything},
    lock::Lock,
    version::Version,
};

impl Persistence {
    /// Warns of a default user with whose rights this server would drop transactions when it loads its AOF file.
    pub fn check_replay(&self, lock: Lock<'_>) {
        let features = self.engine.features;
        let on = config(lock, features, "appendonly");
        if !on.iter().any(|(_, value)| value == "yes")
            || !Version::of_server(lock).loads_transactions_as_default_user()
            || may_run_everything(lock, features, "default") != Some(false)
        {
            return;
        }
        api::log_warning(
            "the default user may not run everything, and appendonly is on: at its next start this server drops transactions of the AOF file, \
             and with them deletions that were answered and changes that are not saved. Disable that user, but leave it its rights: \
             'user default off ~* &* +@all'",
        );
    }
}
