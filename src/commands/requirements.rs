//! The commands about requirements. Contract: docs/contract/commands.md 1.17 and 1.18.

use std::sync::Arc;

use super::check_may_bring_code;
use crate::{
    engine::{Engine, requirement::Requirement},
    error::Error,
    module::Pinion,
    persistence::files_of,
    requirements::archive,
    server::{
        command::{Answer, Command},
        lock::Lock,
        reply::Reply,
    },
};

commands! {
    dump_requirements_command {
        name: c"rg.pydumpreqs",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "",
        summary: c"Lists the requirements that are installed.",
        handler: |pinion, command| dump(&pinion.engine, command),
    }
    export_requirement_command {
        name: c"rg.pyexportreq",
        flags: c"readonly",
        categories: c"admin dangerous gears",
        syntax: "<requirement>",
        summary: c"Gets a requirement with its files, for RG.PYIMPORTREQ on another server.",
        handler: |pinion, command| export(&pinion.engine, command),
    }
    import_requirement_command {
        name: c"rg.pyimportreq",
        flags: c"write deny-script",
        categories: c"write admin dangerous gears gears-register",
        syntax: "<chunk> [<chunk> ...]",
        summary: c"Installs a requirement that another server exported.",
        handler: import,
    }
}

/// How much of an archive fits one element of a reply.
const CHUNK: usize = 10 * 1024 * 1024;

/// `RG.PYDUMPREQS`
///
/// # Errors
/// None.
fn dump(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let lock = command.lock();
    let known = engine.requirements.all(lock);
    let entries = known.iter().map(|requirement| entry(engine, lock, requirement));
    Ok(Reply::Array(entries.collect()).into())
}

/// A requirement as 18 elements.
pub fn entry(engine: &Engine, lock: Lock<'_>, requirement: &Arc<Requirement>) -> Reply {
    let known = engine.requirements.get(lock, &requirement.name);
    let is_known = known.is_some_and(|known| Arc::ptr_eq(&known, requirement));
    let uses = |session: &Arc<_>| {
        let session: &crate::engine::session::Session = session;
        let is_it = |used: &Arc<Requirement>| Arc::ptr_eq(used, requirement);
        session.needs.requirements.iter().any(is_it)
    };
    let users = engine.registry.sessions(|sessions| {
        let all = sessions.all_live().into_iter().chain(sessions.all_dead());
        all.filter(uses).count()
    });
    let yes = |is: bool| Reply::bulk(if is { "yes" } else { "no" });
    Reply::Array(vec![
        Reply::bulk("GearReqVersion"),
        Reply::Int(2),
        Reply::bulk("Name"),
        Reply::bulk(&requirement.name),
        Reply::bulk("IsDownloaded"),
        yes(true),
        Reply::bulk("IsInstalled"),
        yes(requirement.is_installed()),
        Reply::bulk("CompiledOs"),
        Reply::bulk(&requirement.platform),
        Reply::bulk("Wheels"),
        Reply::bulks(&requirement.wheels),
        Reply::bulk("Path"),
        Reply::bulk(requirement.directory().to_string_lossy().into_owned()),
        Reply::bulk("RefCount"),
        Reply::Int(users as i64 + i64::from(is_known)),
        Reply::bulk("IsInReqDictionary"),
        yes(is_known),
    ])
}

/// `RG.PYEXPORTREQ <name>`
///
/// # Errors
/// There is no such requirement; one of its files is gone.
fn export(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let argv = command.argv();
    let (2, Some(name)) = (argv.len(), argv.get(1)) else {
        return Err(Error::WrongArity);
    };
    let lock = command.lock();
    let name = String::from_utf8_lossy(name);
    let requirement = engine
        .requirements
        .get(lock, &name)
        .ok_or(Error::NoSuchRequirement)?;
    let files = files_of(&requirement).map_err(Error::RequirementNotRead)?;
    let archive = archive::encode(&files);
    let chunks = Reply::bulks(archive.chunks(CHUNK));
    Ok(Reply::Array(vec![entry(engine, lock, &requirement), chunks]).into())
}

/// `RG.PYIMPORTREQ <chunk> [<chunk> ...]`
///
/// # Errors
/// The caller cannot wait; clients may not bring code; damaged chunks; a requirement that is not allowed here. Whatever comes later is the reply of the
/// waiting client.
fn import(pinion: &Pinion, command: &Command<'_>) -> Result<Answer, Error> {
    if !command.may_block() {
        return Err(Error::CannotRunHere);
    }
    check_may_bring_code(pinion)?;
    pinion.cluster.check_place(command.lock())?;
    let archive = command.argv().skip(1).to_vecs().concat();
    let header = archive::header(&archive)?;
    let (persistence, packages) = (&pinion.persistence, &pinion.packages);
    packages.check(std::slice::from_ref(&header.name))?;
    packages.check_wheels(&header.wheels)?;
    let client = command.block()?;
    let (persistence, packages) = (Arc::clone(persistence), Arc::clone(packages));
    let cluster = Arc::clone(&pinion.cluster);
    Arc::clone(&packages).later(move || match persistence.install_archive(archive.clone(), true) {
        Ok(()) => cluster.import_elsewhere(archive, move |reply| client.answer(reply)),
        Err(error) => client.answer(error.into()),
    });
    Ok(Answer::Done)
}
