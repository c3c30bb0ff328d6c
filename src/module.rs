//! What the module is made of, and how it comes up. Everything lives as long as the process.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use crate::{
    cluster::{self, Cluster},
    config::{ASYNC_LOOP, Config, Number, PYTHON_VENV},
    engine::Engine,
    hooks::Hooks,
    persistence::Persistence,
    python::{
        self, CPython, Runtime,
        interpreter::{self, Environment},
    },
    read_through::ReadThrough,
    readers::{
        command::Commands,
        image::Readers,
        keys::{KeysWatch, Subscribe},
        streams::StreamWatch,
        time_events,
    },
    requirements::Packages,
    scripting::{self, Scripting},
    server::{
        api::{self, Features},
        bus,
        command::Definition,
        events::ServerFunction,
        filter, info,
        load::Loading,
        rights,
    },
    threads,
    write_behind::WriteBehind,
};

/// The handle that the server's calls start from. Set once, while the module loads.
static PINION: OnceLock<Pinion> = OnceLock::new();

/// The parts that commands and callbacks work with.
pub struct Pinion {
    pub engine: Arc<Engine>,
    pub hooks: Arc<Hooks>,
    pub keys: Arc<KeysWatch>,
    pub loads: Arc<ReadThrough>,
    pub behind: Arc<WriteBehind>,
    pub commands: Arc<Commands>,
    pub streams: Arc<StreamWatch>,
    pub cluster: Arc<Cluster>,
    pub persistence: Arc<Persistence>,
    pub packages: Arc<Packages>,
}

impl Pinion {
    /// `None` while the module loads.
    pub fn get() -> Option<&'static Self> {
        PINION.get()
    }
}

/// What the server is to call. Those functions stand above this room, because they need what is in it.
pub struct Callbacks {
    pub commands: &'static [&'static [Definition]],
    pub filter: filter::Function,
    pub subscribe: Subscribe,
    pub server_event: ServerFunction,
    pub bus_message: bus::Receiver,
    pub info: info::Function,
}

/// Brings everything up, in the order of who needs whom.
///
/// # Errors
/// Why the module cannot work here, for the server's log.
pub fn start(loading: &Loading<'_>, callbacks: &Callbacks, environment: &Environment) -> Result<(), String> {
    let config = Config::load(&loading.arguments(), &environment.prefix)
        .map_err(|reason| format!("{reason}: could not initialize gears config"))?;
    let config = Arc::new(config);
    loading.offer(config.server_options())?;
    rights::init(config.runs_as_owner()?)?;
    config.check_words()?;
    let lines = config.lines();
    if let Err(size) = threads::enlarge_own_stack() {
        api::log_warning(&format!(
            "the stack of the server's thread is limited to {size} bytes (ulimit -s): deep recursion in functions may end the server"
        ));
    }
    let python = interpreter::start(
        environment,
        &config.text(PYTHON_VENV),
        config.is_on(Number::OverridePythonAllocators),
        &config.text(ASYNC_LOOP),
    )?;
    let features = Features::probe();
    let engine = Engine::start(config, features, Arc::new(CPython))
        .map_err(|error| format!("could not start the worker threads: {error}"))?;
    let lock = loading.lock();
    let hooks = Hooks::new(lock, features, callbacks.filter);
    let keys = KeysWatch::new(Arc::clone(&engine), Arc::clone(&hooks), callbacks.subscribe);
    let commands = Commands::new(Arc::clone(&engine), Arc::clone(&hooks));
    let streams = StreamWatch::new(Arc::clone(&engine), callbacks.subscribe)
        .map_err(|error| format!("could not start the thread that looks for streams: {error}"))?;
    let loads = ReadThrough::new(
        Arc::clone(&engine),
        Arc::clone(&hooks),
        Arc::new(CPython),
        callbacks.subscribe,
    );
    let behind = WriteBehind::new(
        Arc::clone(&engine),
        Arc::clone(&hooks),
        Arc::clone(&loads),
        callbacks.subscribe,
    );
    let readers = Arc::new(Readers {
        loads: Arc::clone(&loads),
        behind: Arc::clone(&behind),
        keys: Arc::clone(&keys),
        commands: Arc::clone(&commands),
        streams: Arc::clone(&streams),
    });
    let packages = Packages::start(
        Arc::clone(&engine.config),
        Arc::clone(&engine.language),
        Path::new(&python.program),
        &python.version,
        loading.port(),
    )?;
    let persistence = Persistence::new(Arc::clone(&engine), Arc::clone(&readers), Arc::clone(&packages));
    let cluster = Cluster::start(
        lock,
        Arc::clone(&engine),
        Arc::clone(&persistence),
        Arc::clone(&packages),
    )
    .map_err(|error| format!("could not start the thread that looks for shards: {error}"))?;
    cluster.connect_halves(&loads, Arc::clone(&behind) as _);
    for kind in [cluster::WANTS_SECRET, cluster::SECRET] {
        bus::subscribe(lock, kind, callbacks.bus_message);
    }
    python::connect(Runtime {
        engine: Arc::clone(&engine),
        readers,
        registrar: Arc::clone(&cluster) as _,
    });
    python::note_places(lock, features);
    let scripting = Scripting::new(Arc::clone(&engine), Arc::new(CPython));
    if let Err(reason) = loading.offer_engine(scripting::NAME, Arc::new(scripting)) {
        api::log_notice(&format!("no Python for EVAL and FCALL: {reason}"));
    }
    time_events::connect(&engine);
    loading.create_type(time_events::load)?;
    loading.keep_in_files(Arc::clone(&persistence) as _)?;
    python::start_threads(&engine).map_err(|error| format!("could not start a thread: {error}"))?;
    loading.make_categories();
    for command in callbacks.commands.iter().copied().flatten() {
        loading.create(*command, features)?;
    }
    engine.gather_jobs(loading.subscribe(callbacks.server_event, callbacks.info));
    engine.update_serving(lock);
    greet(&python, &lines);
    PINION
        .set(Pinion {
            engine,
            hooks,
            keys,
            loads,
            behind,
            commands,
            streams,
            cluster,
            persistence,
            packages,
        })
        .map_err(|_| "the module is loaded already".to_owned())
}

/// Says in the log what was started.
fn greet(python: &interpreter::Started, lines: &[String]) {
    api::log_notice(&format!(
        "Pinion {}, compatible with RedisGears 1.2",
        env!("CARGO_PKG_VERSION")
    ));
    api::log_notice(&format!(
        "Python {} with the virtual environment {} on {}",
        python.version, python.prefix, python.base_prefix
    ));
    for line in lines {
        api::log_notice(line);
    }
}
