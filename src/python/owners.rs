//! Who is behind a registration that a script or a function makes. docs/architecture.md, "Whose rights".

use crate::{
    engine::scope::Scope,
    error::Error,
    server::{lock::Lock, rights::Owner},
};

/// Who is behind a registration: whoever is behind the code that makes it, and the user that it names.
pub fn owner_of(scope: &Scope, user: Option<String>) -> Owner {
    let maker = scope.owner();
    match user {
        None => maker,
        Some(user) => Owner {
            made_by: maker.user().map(str::to_owned),
            acts_as: Some(user),
        },
    }
}

/// Whether the code of this scope may make registrations of `owner`.
///
/// # Errors
/// The user that it names is not its own, nor one that it may change; its own may not register any more.
pub fn check_owner(lock: Lock<'_>, scope: &Scope, owner: &Owner) -> Result<(), Error> {
    let maker = scope.owner();
    if let (Some(actor), None) = (&scope.actor, &scope.script) {
        // A script has come by that right just now.
        actor.check_command(lock, &[&b"RG.PYEXECUTE"[..], b""])?;
    }
    match &owner.acts_as {
        Some(user) if *owner != maker => maker.check_named(lock, user),
        _ => Ok(()),
    }
}
