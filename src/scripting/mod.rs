//! Python for the server's own scripts: EVAL, FUNCTION LOAD, FCALL (Valkey 8.1 and later). Contract:
//! docs/contract/scripting-engine.md.
//!
//! The server calls [`Scripting`] through `server::script_engine`; the language compiles and runs ([`ScriptLanguage`]). This room
//! says what holds around that: whether scripts are allowed, what they belong to, how long they may run, who can kill them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::Instant,
    config::Number,
    engine::{
        Engine,
        scope::{Scope, ServerScript},
        session::{Needs, Session},
        stop::{Stop, Stoppable},
    },
    server::{
        guarded::Guarded,
        lock::{self, Lock},
        reply::Reply,
        script_call::{self, ScriptCall},
        script_engine::{Declared, Flags, Kind, ScriptEngine, ScriptFunction},
        string::Argv,
    },
};

/// The name by which scripts ask for this engine: `#!python`.
pub const NAME: &std::ffi::CStr = c"python";
const SWITCHED_OFF: &str = "Python scripts are switched off on this server (option ScriptingEngine)";
const DENIED: &str = "clients may not bring code to this server (RegistrationPolicy is 'deny')";

/// What the room asks of the language.
pub trait ScriptLanguage: Send + Sync {
    /// Runs a library's code, which declares its functions. Called attached, as are the others.
    ///
    /// # Errors
    /// One line for the client: what is wrong, and in which line.
    fn load_library(&self, code: &[u8], session: &Session) -> Result<Vec<Function>, String>;

    /// Makes a function of the code of EVAL, which is its body.
    ///
    /// # Errors
    /// The same.
    fn load_body(&self, code: &[u8], session: &Session) -> Result<Function, String>;

    /// Does `work` on the server's thread between two instructions of what runs there, detached. From any thread.
    fn between_instructions(&self, work: fn());
}

/// The code of a function.
pub trait Body: Send + Sync {
    /// Calls it. Attached.
    ///
    /// # Errors
    /// What the client gets as an error reply, with its code word.
    fn call(&self, keys: Argv<'_>, arguments: Argv<'_>) -> Result<Reply, String>;

    /// The memory that it takes, in bytes.
    fn size(&self) -> usize;
}

/// A function as the language made it.
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    pub flags: Flags,
    pub body: Box<dyn Body>,
}

/// The engine, as the server has it.
#[derive(Clone)]
pub struct Scripting {
    engine: Arc<Engine>,
    language: Arc<dyn ScriptLanguage>,
}

/// The script that can be killed now.
static RUNNING: Guarded<Option<Arc<Run>>> = Guarded::new(None);

impl Scripting {
    pub fn new(engine: Arc<Engine>, language: Arc<dyn ScriptLanguage>) -> Self {
        Self { engine, language }
    }

    fn is_on(&self) -> bool {
        self.engine.config.is_on(Number::ScriptingEngine)
    }

    /// Files and masters bring libraries to servers that run none, so that nothing gets lost.
    ///
    /// # Errors
    /// A client brings the code, and Python is switched off here, or clients may bring none.
    fn may_load(&self, lock: Lock<'_>, kind: Kind) -> Result<(), String> {
        if kind == Kind::Library && (lock.is_loading() || !lock.is_master()) {
            return Ok(());
        }
        if !self.is_on() {
            return Err(SWITCHED_OFF.to_owned());
        }
        // What is no word of the option was refused while the module loaded.
        if self.engine.config.denies_code().unwrap_or(true) {
            return Err(DENIED.to_owned());
        }
        Ok(())
    }

    fn run(&self, what: String, limit: Option<Duration>) -> Arc<Run> {
        Arc::new(Run {
            stop: Stop::default(),
            what,
            limit,
            killed: AtomicBool::new(false),
            language: Arc::clone(&self.language),
        })
    }
}

impl ScriptEngine for Scripting {
    fn compile(
        &self,
        lock: Lock<'_>,
        kind: Kind,
        code: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<Declared>, String> {
        self.may_load(lock, kind)?;
        let session = Arc::new(Session::new(String::new(), None, Needs::default()));
        let run = self.run("the code of FUNCTION LOAD".to_owned(), limit);
        let scope = Scope::of_server_script(&session, ServerScript::Loads, 0).enter();
        let watched = self
            .engine
            .watch_sync(lock, Arc::clone(&run) as _, Instant::now());
        let mut made = Err(String::new());
        self.engine.language.interruptible(&run.stop, &mut || {
            made = match kind {
                Kind::Library => self.language.load_library(code, &session),
                Kind::Eval => self.language.load_body(code, &session).map(|body| vec![body]),
            };
        });
        drop((watched, scope));
        if run.stop.has_timed_out() {
            return Err(match limit {
                Some(limit) => format!(
                    "FUNCTION LOAD timeout: the code ran longer than {} ms",
                    limit.as_millis()
                ),
                None => self.engine.sync_timeout().to_string(),
            });
        }
        let declare = |function: Function| Declared {
            name: function.name.clone(),
            description: function.description.clone(),
            flags: function.flags,
            function: Arc::new(Callable {
                scripting: self.clone(),
                session: Arc::clone(&session),
                function,
            }),
        };
        // The server puts the code word in front.
        let made = made.map_err(|text| text.strip_prefix("ERR ").unwrap_or(&text).to_owned())?;
        Ok(made.into_iter().map(declare).collect())
    }
}

/// A function as the server calls it.
struct Callable {
    scripting: Scripting,
    session: Arc<Session>,
    function: Function,
}

impl ScriptFunction for Callable {
    fn call(&self, call: &ScriptCall<'_>) -> Reply {
        let scripting = &self.scripting;
        if !scripting.is_on() {
            return Reply::error(format!("ERR {SWITCHED_OFF}"));
        }
        let (lock, engine) = (call.lock(), &scripting.engine);
        let what = if call.is_eval() {
            "a script of EVAL".to_owned()
        } else {
            format!("the function {} of FCALL", self.function.name)
        };
        let run = scripting.run(what, None);
        let scope = Scope::of_server_script(&self.session, ServerScript::Runs, call.db()).enter();
        let watched = engine.watch_sync(lock, Arc::clone(&run) as _, Instant::now());
        *RUNNING.write(lock) = Some(Arc::clone(&run));
        let mut answer = Err(String::new());
        engine.language.interruptible(&run.stop, &mut || {
            answer = self.function.body.call(call.keys(), call.arguments());
        });
        *RUNNING.write(lock) = None;
        drop((watched, scope));
        if run.killed.load(Ordering::Acquire) {
            let command = if call.is_eval() { "SCRIPT" } else { "FUNCTION" };
            return Reply::error(format!("ERR Script killed by user with {command} KILL."));
        }
        if run.stop.has_timed_out() {
            return engine.sync_timeout().into();
        }
        answer.unwrap_or_else(Reply::error)
    }

    fn size(&self) -> usize {
        self.function.body.size()
    }
}

/// One run of code.
struct Run {
    stop: Stop,
    what: String,
    limit: Option<Duration>,
    killed: AtomicBool,
    language: Arc<dyn ScriptLanguage>,
}

impl Stoppable for Run {
    fn stop(&self) -> &Stop {
        &self.stop
    }

    fn describe(&self) -> String {
        self.what.clone()
    }

    fn limit(&self) -> Option<Duration> {
        self.limit
    }

    fn is_unwanted(&self) -> bool {
        let killed = self.killed.load(Ordering::Acquire);
        if !killed {
            self.language.between_instructions(look);
        }
        killed
    }
}

/// In the middle of a script that takes long: the server does what it must, and tells whether somebody has killed the script.
fn look() {
    if !lock::is_held() {
        return;
    }
    lock::with_lock(|lock| {
        if script_call::is_killed(lock) {
            let run = RUNNING.read(lock).clone();
            if let Some(run) = run {
                run.killed.store(true, Ordering::Release);
            }
        }
    });
}
