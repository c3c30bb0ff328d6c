//! pip as a child process: no shell, its words in the server's log, never for ever.

use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead, BufReader, PipeReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::reason::{self, Cause, PipFailure};
use crate::server::api;

/// A pip that says nothing for so long has hung. Building a package may take minutes without a word.
const SILENCE: Duration = Duration::from_secs(600);
/// How many times a download is tried, and how long after the last time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// How many lines are kept to tell why it failed.
const LAST_WORDS: usize = 2000;
/// Says where pip is imported from, or what Python says where there is none.
const FIND_PIP: &str = "import importlib.util as i, os; pip = i.find_spec('pip'); \
    print(os.path.dirname(pip.submodule_search_locations[0]) if pip else 'No module named pip')";
/// What runs pip in an environment that has none.
const RUN_PIP: &str = include_str!("run_pip.py");
/// Less urgent than the server.
const NICENESS: libc::c_int = 10;

/// Where packages come from and go to: pip of one virtual environment installs into another one, which is this server's.
#[derive(Debug)]
pub struct Pip {
    /// The interpreter that has pip.
    pub program: PathBuf,
    /// The virtual environment of this server's requirements.
    pub environment: PathBuf,
    /// E.g. `3.11`.
    pub version: String,
}

impl Pip {
    /// The folder that installed packages are imported from.
    pub fn site_packages(&self) -> PathBuf {
        let library = format!("lib/python{}/site-packages", self.version);
        self.environment.join(library)
    }

    /// Fetches or builds the wheels of a requirement and of all that it needs.
    ///
    /// # Errors
    /// pip failed each time: its reason, in one line.
    pub fn fetch(&self, requirement: &str, directory: &Path) -> Result<(), String> {
        let (mut reason, mut isolated) = (String::new(), true);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            let mut command = self.command();
            command
                .args([
                    "wheel",
                    // Old source distributions, too, are built where setuptools and wheel are: pip fetches them for that.
                    "--use-pep517",
                    "--disable-pip-version-check",
                    "--no-input",
                    "--progress-bar",
                    "off",
                    "--wheel-dir",
                ])
                .arg(directory);
            if !isolated {
                command.arg("--no-build-isolation");
            }
            command.arg("--").arg(requirement);
            match run(command) {
                Ok(()) => return Ok(()),
                Err(failed) => {
                    reason = failed.reason;
                    match failed.cause {
                        Cause::NotBuilt | Cause::NoPip => break,
                        // Without an index there may be setuptools in the environment.
                        Cause::NoBuildTools => isolated = false,
                        Cause::Other => {}
                    }
                }
            }
        }
        Err(reason)
    }

    /// Installs wheels, whatever is installed of these packages.
    ///
    /// # Errors
    /// The environment could not be made; pip failed.
    pub fn install(&self, wheels: &[PathBuf]) -> Result<(), String> {
        self.make_environment()?;
        let unfinished = self.environment.join(INSTALLED).join(UNFINISHED);
        let failed = |error: std::io::Error| format!("{}: {error}", unfinished.display());
        fs::write(&unfinished, "").map_err(failed)?;
        let mut command = self.command_for_environment()?;
        command
            .args([
                "install",
                "--no-cache-dir",
                "--force-reinstall",
                "--no-index",
                "--disable-pip-version-check",
                "--no-input",
                "--",
            ])
            .args(wheels);
        run(command).map_err(|failed| failed.reason)?;
        fs::remove_file(&unfinished).map_err(failed)
    }

    /// The folder of marks is made last: an environment without it was never finished.
    fn make_environment(&self) -> Result<(), String> {
        let marks = self.environment.join(INSTALLED);
        let finished = marks.is_dir();
        if finished && self.site_packages().is_dir() && self.environment.join("bin/python").exists() {
            return Ok(());
        }
        let mut command = Command::new(&self.program);
        command.args(["-I", "-m", "venv", "--without-pip"]);
        if finished {
            // Its packages are good: only the way to an interpreter, which has moved, is made anew.
            let _ = fs::remove_dir_all(self.environment.join("bin"));
        } else {
            command.arg("--clear");
        }
        command.arg(&self.environment);
        run(command).map_err(|failed| failed.reason)?;
        fs::create_dir_all(&marks).map_err(|error| format!("{}: {error}", marks.display()))
    }

    /// Whether a requirement's folder was the last one installed under its name here, also by an earlier process.
    pub fn has_installed(&self, directory: &Path) -> bool {
        let unfinished = self.environment.join(INSTALLED).join(UNFINISHED);
        self.mark_of(directory).is_some_and(|mark| mark.exists()) && !unfinished.exists()
    }

    /// Notes that for the next process.
    pub fn note_installed(&self, directory: &Path) {
        if let Some(mark) = self.mark_of(directory) {
            if let Err(error) = fs::write(&mark, "") {
                api::log_warning(&format!("could not write {}: {error}", mark.display()));
            }
        }
    }

    fn mark_of(&self, directory: &Path) -> Option<PathBuf> {
        Some(self.environment.join(INSTALLED).join(directory.file_name()?))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Neither the server's directory nor variables for Python bring modules of their own; each line comes at once.
        command.args(["-I", "-u", "-m", "pip"]);
        command
    }

    /// The same pip, whose packages are those of the environment.
    ///
    /// # Errors
    /// There is no pip; the runner could not be written.
    fn command_for_environment(&self) -> Result<Command, String> {
        let folder = self.folder_of_pip()?;
        let runner = self.environment.join("run_pip.py");
        fs::write(&runner, RUN_PIP).map_err(|error| format!("{}: {error}", runner.display()))?;
        let mut command = Command::new(self.environment.join("bin/python"));
        command.args(["-I", "-u"]).arg(runner).arg(folder);
        Ok(command)
    }

    /// Where pip is imported from.
    ///
    /// # Errors
    /// Python's words, where there is none.
    fn folder_of_pip(&self) -> Result<PathBuf, String> {
        let mut command = Command::new(&self.program);
        command.args(["-I", "-c", FIND_PIP]);
        let shown = format!("{command:?}");
        let (mut child, mut output) =
            start(command).map_err(|error| format!("could not start {shown}: {error}"))?;
        let mut said = String::new();
        let read = output.read_to_string(&mut said);
        // Its status may be gone: see `ended`.
        let _ = child.wait();
        let words: Vec<_> = said.lines().map(str::to_owned).collect();
        let folder = words.last().map(PathBuf::from).unwrap_or_default();
        if read.is_ok() && folder.is_absolute() && folder.exists() {
            return Ok(folder);
        }
        Err(reason::of(&words, "where pip is could not be found out".to_owned()).reason)
    }
}

/// A folder in the environment with one mark per installed requirement.
const INSTALLED: &str = "pinion-installed";
/// Its mark for an installation that was begun: after a failure or a kill nobody knows what is there.
const UNFINISHED: &str = "unfinished";

/// Runs a command to its end; each line that it writes becomes one of the log.
fn run(command: Command) -> Result<(), PipFailure> {
    let shown = format!("{command:?}");
    api::log_notice(&format!("Executing : {shown}"));
    let (mut child, output) =
        start(command).map_err(|error| PipFailure::plain(format!("could not start {shown}: {error}")))?;
    // SAFETY: a number and a process of ours; failure means that it stays as urgent as we are.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, child.id(), NICENESS) };
    let (said, lines) = mpsc::channel();
    let mut last_words = VecDeque::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let _ = said.send(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
        });
        loop {
            match lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    api::log_notice(&format!("pip: {line}"));
                    if last_words.len() == LAST_WORDS {
                        last_words.pop_front();
                    }
                    last_words.push_back(line);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    api::log_warning("pip has said nothing for ten minutes and is ended");
                    // SAFETY: the group is that of our child, which has not been waited for.
                    unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
                }
            }
        }
    });
    let last_words = last_words.make_contiguous();
    ended(&mut child, last_words).map_err(|status| reason::of(last_words, status))
}

/// Starts a command whose two outputs are one pipe: the reason why pip failed is what it said last, on whichever of them.
fn start(mut command: Command) -> io::Result<(Child, PipeReader)> {
    let (output, input) = io::pipe()?;
    let child = command
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .process_group(0)
        .spawn()?;
    Ok((child, output))
}

fn ended(child: &mut Child, last_words: &[String]) -> Result<(), String> {
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("it ended with {status}")),
        // The server waits for any child while it saves, and has taken the status: what pip said tells.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) && !reason::tells(last_words) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)] // a test may panic
mod tests {
    use super::*;

    /// How a program that says this ended, whose status somebody else has taken, as the server does while it saves.
    fn ended_unseen(words: &str) -> Result<(), String> {
        let mut child = Command::new("true").spawn().map_err(|error| error.to_string())?;
        // SAFETY: a child of ours; no status is wanted.
        unsafe { libc::waitpid(child.id() as libc::pid_t, std::ptr::null_mut(), 0) };
        ended(&mut child, &[words.to_owned()])
    }

    /// The lines of a program that uses both of its outputs come in the order in which it wrote them.
    #[test]
    fn both_outputs_keep_their_order() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "i=0; while [ $i -lt 500 ]; do echo $i; echo $((i+1)) >&2; i=$((i+2)); done",
        ]);
        let (mut child, output) = start(command).expect("sh runs");
        let lines: Vec<_> = BufReader::new(output).lines().map_while(Result::ok).collect();
        let expected: Vec<_> = (0..500).map(|number| number.to_string()).collect();
        assert_eq!(lines, expected);
        assert!(child.wait().is_ok_and(|status| status.success()));
    }

    #[test]
    fn without_a_status_its_words_count() {
        assert_eq!(ended_unseen("Saved ./x.whl"), Ok(()));
        assert!(ended_unseen("  ERROR: no such thing").is_err());
        assert!(ended_unseen("Error: no venv").is_err());
    }
}
