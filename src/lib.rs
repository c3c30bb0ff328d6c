//! Pinion: Python functions inside Redis and Valkey. This file is the module's table; the logic is behind it.

mod cluster;
mod commands;
mod config;
mod engine;
mod error;
mod hooks;
#[cfg(feature = "bench")]
pub mod inner;
mod persistence;
mod python;
mod read_through;
mod readers;
mod report;
mod server;
mod stats;

use std::{
    ffi::{c_char, c_int, c_void},
    path::Path,
    sync::{Arc, OnceLock},
};

use crate::{
    cluster::Cluster,
    commands::{
        cluster as clusters, config as configuration, executions,
        pyexecute::{self, Execute},
        refresh, registrations, requirements, sessions, small,
    },
    config::{ASYNC_LOOP, Config, Number, PYTHON_VENV},
    engine::Engine,
    error::Error,
    hooks::{Hooks, ProxyCommand},
    persistence::Persistence,
    python::{CPython, Packages, Runtime, interpreter},
    read_through::ReadThrough,
    readers::{command::Commands, image::Readers, keys::KeysWatch, streams::StreamWatch, time_events},
    server::{
        after,
        api::{self, Features},
        bus,
        command::{self, Answer, Command, Definition},
        events::{self, Class, ServerEvent},
        filter, info,
        load::{self, Loading},
        lock::Lock,
        persist, raw,
    },
};

/// The name that clients look for in MODULE LIST.
const NAME: &std::ffi::CStr = c"rg";
/// That of the RedisGears release whose contract this is: 1.2.13.
const VERSION: c_int = 10213;

#[cfg(not(any(test, feature = "bench")))]
#[global_allocator]
static ALLOCATOR: server::alloc::ServerAlloc = server::alloc::ServerAlloc;

/// The handle that the server's callbacks start from. Set once, while the module loads.
static PINION: OnceLock<Pinion> = OnceLock::new();

struct Pinion {
    engine: Arc<Engine>,
    hooks: Arc<Hooks>,
    keys: Arc<KeysWatch>,
    loads: Arc<ReadThrough>,
    commands: Arc<Commands>,
    streams: Arc<StreamWatch>,
    cluster: Arc<Cluster>,
    execute: Execute,
}

/// Per command: name, flags, ACL categories, syntax, summary, handler.
macro_rules! commands {
    ($($function:ident $name:literal $flags:literal $categories:literal $syntax:literal $summary:literal $(key $key:literal)? $(keys $keys:literal)?
        => $handler:expr;)*) => {
        $(
            unsafe extern "C" fn $function(
                ctx: *mut raw::RedisModuleCtx,
                argv: *mut *mut raw::RedisModuleString,
                argc: c_int,
            ) -> c_int {
                let handler: fn(&Pinion, &Command<'_>) -> Result<Answer, Error> = $handler;
                // SAFETY: the server calls this with its own arguments.
                unsafe {
                    command::run(ctx, argv, argc, |command| match PINION.get() {
                        Some(pinion) => handler(pinion, command),
                        None => Err(Error::Text("ERR the module is still loading".into())),
                    })
                }
            }
        )*
        const COMMANDS: &[Definition] = &[
            $(Definition {
                name: $name,
                flags: $flags,
                categories: $categories,
                syntax: $syntax,
                summary: $summary,
                key: 0 $(+ $key)? $(+ $keys)?,
                last_key: 0 $(+ $key)? $(- $keys)?,
                function: $function,
            }),*
        ];
    };
}

commands! {
    pyexecute c"rg.pyexecute" c"write deny-script" c"write admin dangerous"
        "<script> [UNBLOCKING] [ID <id>] [DESCRIPTION <text>] [UPGRADE] [REPLACE_WITH <id>] [FORCE_REINSTALL_REQUIREMENTS] [REQUIREMENTS [<requirement> ...]]"
        c"Runs a script, which may run functions over the data and register others."
        => |pinion, command| pyexecute::pyexecute(&pinion.execute, command);
    trigger c"rg.trigger" c"write" c"write dangerous"
        "<trigger> [<argument> ...]"
        c"Calls a function that was registered with this name."
        => |pinion, command| pinion.commands.call(command);
    trigger_on_key c"rg.triggeronkey" c"write" c"write dangerous"
        "<trigger> <key> [<argument> ...]"
        c"Calls a function where its key is: clients of a cluster find the shard by it."
        key 2
        => |pinion, command| pinion.commands.call(command);
    dump_requirements c"rg.pydumpreqs" c"readonly" c"read"
        ""
        c"Lists the requirements that are installed."
        => |pinion, command| requirements::dump(&pinion.engine, command);
    export_requirement c"rg.pyexportreq" c"readonly" c"admin dangerous"
        "<requirement>"
        c"Gets a requirement with its files, for RG.PYIMPORTREQ on another server."
        => |pinion, command| requirements::export(&pinion.engine, command);
    import_requirement c"rg.pyimportreq" c"write deny-script" c"write admin dangerous"
        "<chunk> [<chunk> ...]"
        c"Installs a requirement that another server exported."
        => |pinion, command| requirements::import(&pinion.execute, command);
    dump_sessions c"rg.pydumpsessions" c"readonly" c"read"
        "[VERBOSE] [DEAD|TS] [SESSIONS [<id> ...]]"
        c"Lists the sessions that scripts made."
        => |pinion, command| sessions::dump_sessions(&pinion.engine, command);
    py_profile c"rg.pyprofile" c"readonly" c"read"
        "STATS|RESET <session id> [<order>]"
        c"Shows or resets the profile of a session's functions."
        => |pinion, command| sessions::profile(&pinion.engine, command);
    py_stats c"rg.pystats" c"readonly" c"read"
        ""
        c"Shows how much memory Python takes."
        => |_, _| small::py_stats();
    dump_plugins c"rg.dumpplugins" c"readonly" c"read"
        ""
        c"Lists the languages that functions can be written in."
        => |_, _| small::dump_plugins();
    py_execute_remote c"rg.pyexecuteremote" c"readonly" c"read"
        ""
        c"Says that this command is no longer supported."
        => |_, _| small::no_execute_remote();
    py_free_interpreter c"rg.pyfreeinterpreter" c"readonly" c"read"
        ""
        c"Says that this command is no longer supported."
        => |_, _| small::no_free_interpreter();
    get_results c"rg.getresults" c"readonly" c"read"
        "<execution id>"
        c"Gets the results and the errors of a finished execution."
        => |pinion, command| executions::get_results(&pinion.engine, command);
    get_results_blocking c"rg.getresultsblocking" c"readonly" c"read blocking"
        "<execution id>"
        c"Waits for the end of an execution and gets its results and errors."
        => |pinion, command| executions::get_results_blocking(&pinion.engine, command);
    get_execution c"rg.getexecution" c"readonly" c"read"
        "<execution id> [SHARD|CLUSTER]"
        c"Shows the status, the durations and the steps of an execution."
        => |pinion, command| executions::get_execution(&pinion.cluster, command);
    dump_executions c"rg.dumpexecutions" c"readonly" c"read"
        ""
        c"Lists the executions."
        => |pinion, command| executions::dump_executions(&pinion.engine, command);
    abort_execution c"rg.abortexecution" c"readonly deny-script" c"admin dangerous blocking"
        "<execution id>"
        c"Stops an execution and waits until it has ended."
        => |pinion, command| executions::abort_execution(&pinion.cluster, command);
    drop_execution c"rg.dropexecution" c"readonly" c"admin dangerous"
        "<execution id>"
        c"Forgets a finished execution."
        => |pinion, command| executions::drop_execution(&pinion.cluster, command);
    dump_registrations c"rg.dumpregistrations" c"readonly" c"read"
        "[VERBOSE]"
        c"Lists the registered functions with their statistics."
        => |pinion, command| registrations::dump_registrations(&pinion.engine, command);
    unregister c"rg.unregister" c"write" c"write admin dangerous"
        "<registration id> [ABORTPENDING]"
        c"Removes a registered function."
        => |pinion, command| registrations::unregister(&pinion.cluster, command);
    pause c"rg.pauseregistrations" c"readonly deny-script" c"admin dangerous"
        "[ABORTPENDING] <registration id> [<registration id> ...]"
        c"Lets registered functions read no more."
        => |pinion, command| registrations::pause(&pinion.cluster, command, true);
    unpause c"rg.unpauseregistrations" c"readonly deny-script" c"admin dangerous"
        "<registration id> [<registration id> ...]"
        c"Lets registered functions read again."
        => |pinion, command| registrations::pause(&pinion.cluster, command, false);
    clear_stats c"rg.clearregistrationsstats" c"readonly deny-script" c"admin dangerous"
        ""
        c"Sets the statistics of all registered functions to zero."
        => |pinion, command| registrations::clear_stats(&pinion.cluster, command);
    refresh c"rg.refresh" c"write" c"write blocking"
        "<key> [<key> ...]"
        c"Loads keys anew that read_through has a loader for, and says how many were loaded."
        keys 1
        => |pinion, command| refresh::refresh(&pinion.loads, command);
    config_get c"rg.configget" c"readonly" c"read"
        "[<key> ...]"
        c"Shows options of the module."
        => |pinion, command| configuration::config_get(&pinion.engine, command);
    config_set c"rg.configset" c"readonly" c"admin dangerous"
        "[<key> <value> ...]"
        c"Changes options of the module."
        => |pinion, command| configuration::config_set(&pinion.engine, command);
    info_cluster c"rg.infocluster" c"readonly" c"read"
        ""
        c"Shows the shards of the cluster."
        => |pinion, _| clusters::info_cluster(&pinion.cluster);
    refresh_cluster c"rg.refreshcluster" c"readonly deny-script" c"admin dangerous"
        ""
        c"Looks for the shards of the cluster and opens the links to them anew."
        => |pinion, command| clusters::refresh_cluster(&pinion.cluster, command);
    cluster_set c"rg.clusterset" c"readonly deny-script" c"admin dangerous"
        "<word> [<word> ...]"
        c"Tells the shards of a cluster that is not Redis Cluster."
        => |pinion, command| clusters::cluster_set(&pinion.cluster, command, false);
    cluster_set_from_shard c"rg.clustersetfromshard" c"readonly deny-script" c"admin dangerous"
        "<word> [<word> ...]"
        c"As RG.CLUSTERSET, where no shards are known."
        => |pinion, command| clusters::cluster_set(&pinion.cluster, command, true);
    network_test c"rg.networktest" c"readonly" c"admin dangerous"
        ""
        c"Sends a message to each other shard, which writes it to its log."
        => |pinion, _| clusters::network_test(&pinion.cluster);
    hello c"RG.HELLO" c"readonly" c"admin dangerous"
        "" c"Internal: another shard of the cluster says who it is."
        => |pinion, command| pinion.cluster.hello(command);
    inner_message c"RG.INNERMSGCOMMAND" c"readonly deny-script" c"admin dangerous"
        "" c"Internal: a message of another shard of the cluster."
        => |pinion, command| pinion.cluster.inner_message(command);
    inner_read c"RG.INNERREAD" c"readonly getkeys-api" c"read"
        "" c"Internal: stands in front of a command that functions are linked to."
        => |pinion, command| pinion.hooks.run_proxy(&pinion.engine, command, ProxyCommand::Read);
    inner_register c"RG.INNERREGISTER" c"write" c"write admin dangerous"
        "<blob>" c"Internal: one step of what is registered, in files and on replicas."
        => |pinion, command| pinion.execute.persistence.inner_register(command);
    inner_unregister c"RG.INNERUNREGISTER" c"write" c"write admin dangerous"
        "<registration id> [ABORTPENDING]"
        c"Removes a registered function, on this shard only."
        => |pinion, command| pinion.execute.persistence.inner_unregister(command);
    inner_import c"RG.PYIMPORTRETINTERNAL" c"write" c"write admin dangerous"
        "<blob>" c"Internal: a requirement with its files, in files and on replicas."
        => |pinion, command| pinion.execute.persistence.inner_import(command);
    inner_after c"RG.INNERAFTER" c"write" c"write admin dangerous"
        "" c"Internal: runs what waits for the end of a command."
        => |_, command| small::inner_after(command);
    inner_time_event c"RG.INNERTIMEEVENT" c"write" c"write admin dangerous"
        "<key> <period> <session id> <image>"
        c"Internal: makes a time event, in files and on replicas."
        => |_, command| time_events::inner_time_event(command);
    inner_write c"RG.INNERWRITE" c"write getkeys-api" c"write"
        "" c"Internal: stands in front of a command that functions are linked to."
        => |pinion, command| pinion.hooks.run_proxy(&pinion.engine, command, ProxyCommand::Write);
    inner_write_more c"RG.INNERWRITEMORE" c"write deny-oom getkeys-api" c"write"
        "" c"Internal: stands in front of a command that functions are linked to."
        => |pinion, command| pinion.hooks.run_proxy(&pinion.engine, command, ProxyCommand::WriteMore);
}

unsafe extern "C" fn on_command_filter(passing: *mut raw::RedisModuleCommandFilterCtx) {
    let Some(pinion) = PINION.get() else { return };
    // SAFETY: the server calls this with its own argument.
    unsafe { filter::run(passing, |passing| pinion.hooks.filter(&pinion.engine, passing)) };
}

/// Two functions, because the server calls a function for no event that this very function causes: a miss inside a
/// change must be seen, and the reverse.
macro_rules! notifications {
    ($($function:ident => $reader:ident;)*) => { $(
        unsafe extern "C" fn $function(
            ctx: *mut raw::RedisModuleCtx,
            _class: c_int,
            event: *const c_char,
            key: *mut raw::RedisModuleString,
        ) -> c_int {
            let Some(pinion) = PINION.get() else { return 0 };
            // SAFETY: the server calls this with its own arguments.
            unsafe {
                events::run_notification(
                    ctx,
                    event,
                    key,
                    |lock, key| pinion.$reader.concerns(lock, key),
                    |event| pinion.$reader.notify(event),
                )
            }
        }
    )* };
}

notifications! {
    on_key_miss => keys;
    on_key_change => keys;
    on_stream_change => streams;
    on_loaded_change => loads;
}

fn subscribe(lock: Lock<'_>, class: Class) {
    match class {
        Class::KeyMiss => events::subscribe(lock, class, on_key_miss),
        Class::Changes(_) => events::subscribe(lock, class, on_key_change),
        Class::Stream => events::subscribe(lock, class, on_stream_change),
        Class::Loaded => events::subscribe(lock, class, on_loaded_change),
    }
}

unsafe extern "C" fn on_server_event(
    _ctx: *mut raw::RedisModuleCtx,
    event: raw::RedisModuleEvent,
    sub_event: u64,
    data: *mut c_void,
) {
    let Some(pinion) = PINION.get() else { return };
    // SAFETY: the server calls this with its own arguments.
    unsafe {
        events::run_server_event(event, sub_event, data, |lock, event| {
            if event == ServerEvent::BeforeSleep {
                after::before_sleep(lock);
                pinion.loads.pump(lock);
                pinion.engine.about_to_sleep();
                return;
            }
            match event {
                ServerEvent::Flushed(db) => return pinion.loads.flushed(lock, db),
                ServerEvent::Swapped(first, second) => {
                    pinion.loads.flushed(lock, Some(first));
                    return pinion.loads.flushed(lock, Some(second));
                }
                _ => {}
            }
            let begins = pinion.engine.update_serving(lock);
            let persistence = &pinion.execute.persistence;
            match event {
                ServerEvent::LoadingStarted => {
                    time_events::loading_started(lock);
                    persistence.loading_started(lock);
                }
                ServerEvent::LoadingFailed => persistence.loading_failed(lock),
                ServerEvent::LoadingEnded => {
                    persist::ended(lock);
                    persistence.loading_ended(lock);
                }
                ServerEvent::WritingStarted(writing) => return persist::writing_started(lock, writing),
                ServerEvent::WritingEnded => return persist::ended(lock),
                _ => {}
            }
            if begins {
                // Not in the middle of REPLICAOF: it would count what is written as its own, and replicas would get it.
                after::after_command(lock, |_| pinion.engine.prepare_again());
                pinion.streams.begin_again(lock);
            }
        });
    }
}

unsafe extern "C" fn on_bus_message(
    _ctx: *mut raw::RedisModuleCtx,
    sender: *const c_char,
    kind: u8,
    message: *const u8,
    length: u32,
) {
    let Some(pinion) = PINION.get() else { return };
    // SAFETY: the server calls this with its own arguments.
    unsafe {
        bus::run(sender, message, length, |lock, sender, message| {
            pinion.cluster.bus_message(lock, kind, sender, message);
        });
    }
}

unsafe extern "C" fn on_info(request: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    let Some(pinion) = PINION.get() else { return };
    if for_crash_report != 0 {
        // The thread that crashed may hold one of our mutexes.
        return;
    }
    // SAFETY: the server calls this with its own argument.
    unsafe {
        info::run(request, |info| {
            report::fill(info, &pinion.engine, &pinion.cluster, &pinion.loads);
        });
    };
}

/// The server's way in.
///
/// # Safety
/// To be called by the server, once, with its own arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RedisModule_OnLoad(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server calls this with its own arguments.
    unsafe { load::run(ctx, argv, argc, NAME, VERSION, start) }
}

/// Refuses: threads run in the module, and Python cannot be taken out of a process.
///
/// # Safety
/// To be called by the server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RedisModule_OnUnload(_ctx: *mut raw::RedisModuleCtx) -> c_int {
    raw::REDISMODULE_ERR as c_int
}

/// Brings everything up, in the order of who needs whom.
fn start(loading: &Loading<'_>) -> Result<(), String> {
    let config = Config::load(&loading.arguments())
        .map_err(|reason| format!("{reason}: could not initialize gears config"))?;
    let config = Arc::new(config);
    loading.offer(config.server_options())?;
    let lines = config.lines();
    let python = interpreter::start(
        &config.text(PYTHON_VENV),
        config.is_on(Number::OverridePythonAllocators),
        &config.text(ASYNC_LOOP),
    )?;
    let features = Features::probe();
    let engine = Engine::start(config, features, Arc::new(CPython))
        .map_err(|error| format!("could not start the worker threads: {error}"))?;
    let lock = loading.lock();
    let hooks = Hooks::new(lock, features, on_command_filter);
    let keys = KeysWatch::new(Arc::clone(&engine), Arc::clone(&hooks), subscribe);
    let commands = Commands::new(Arc::clone(&engine), Arc::clone(&hooks));
    let streams = StreamWatch::new(Arc::clone(&engine), subscribe)
        .map_err(|error| format!("could not start the thread that looks for streams: {error}"))?;
    let loads = ReadThrough::new(
        Arc::clone(&engine),
        Arc::clone(&hooks),
        Arc::new(CPython),
        subscribe,
    );
    let readers = Arc::new(Readers {
        loads: Arc::clone(&loads),
        keys: Arc::clone(&keys),
        commands: Arc::clone(&commands),
        streams: Arc::clone(&streams),
    });
    let packages = Packages::start(
        Arc::clone(&engine.config),
        Path::new(&python.prefix),
        &python.version,
    )?;
    let persistence = Persistence::new(Arc::clone(&engine), Arc::clone(&readers), Arc::clone(&packages));
    let cluster = Cluster::start(
        Arc::clone(&engine),
        Arc::clone(&persistence),
        Arc::clone(&packages),
    )
    .map_err(|error| format!("could not start the thread that looks for shards: {error}"))?;
    for kind in [cluster::WANTS_SECRET, cluster::SECRET] {
        bus::subscribe(lock, kind, on_bus_message);
    }
    python::connect(Runtime {
        engine: Arc::clone(&engine),
        readers,
        cluster: Arc::clone(&cluster),
    });
    time_events::connect(&engine);
    loading.create_type(time_events::load)?;
    loading.keep_in_files(Arc::clone(&persistence) as _)?;
    python::start_loop().map_err(|error| format!("could not start the event loop's thread: {error}"))?;
    for command in COMMANDS {
        loading.create(*command, features)?;
    }
    engine.gather_jobs(loading.subscribe(on_server_event, on_info));
    engine.update_serving(lock);
    api::log_notice(&format!(
        "Pinion {}, compatible with RedisGears 1.2",
        env!("CARGO_PKG_VERSION")
    ));
    api::log_notice(&format!(
        "Python {} with the virtual environment {} on {}",
        python.version, python.prefix, python.base_prefix
    ));
    for line in &lines {
        api::log_notice(line);
    }
    PINION
        .set(Pinion {
            execute: Execute {
                engine: Arc::clone(&engine),
                cluster: Arc::clone(&cluster),
                persistence,
                packages,
            },
            cluster,
            engine,
            hooks,
            keys,
            loads,
            commands,
            streams,
        })
        .map_err(|_| "the module is loaded already".to_owned())
}
