//! Requirements of sessions: fetched, kept as files, installed, made importable. Contract: `commands.md` 4.6.
//!
//! One thread does it all, one job after the other, without the server's lock. Packages are installed into a virtual
//! environment of this server's own, in its working directory, in front of the one that the module was started with.

mod pip;
mod specifier;

use std::{
    ffi::CStr,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use pyo3::{prelude::*, sync::PyOnceLock, types::PyModule};
use sha2::{Digest, Sha256};

use self::pip::Pip;
use super::interpreter::cstr;
use crate::{
    config::{Config, REQUIREMENTS_DIR, REQUIREMENTS_POLICY},
    engine::requirement::Requirement,
    error::Error,
    redis::api,
};

const PACKAGES: &CStr = cstr(concat!(include_str!("../../../python/packages.py"), "\0"));

/// What the thread is to do.
type Job = Box<dyn FnOnce() + Send>;

/// The requirements of this server.
pub struct Packages {
    config: Arc<Config>,
    /// Where the files of requirements and the environment are.
    base: PathBuf,
    pip: Pip,
    jobs: mpsc::Sender<Job>,
}

/// The files of a requirement as they travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub name: String,
    pub platform: String,
    /// Names and contents, sorted by name.
    pub wheels: Vec<(String, Vec<u8>)>,
}

/// What kind of machine wheels are built for here.
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

impl Packages {
    /// Starts the thread, and makes importable what an earlier process has installed. `venv`: the environment that has
    /// pip; `version`: that of Python, e.g. `3.11.2`.
    ///
    /// # Errors
    /// The operating system gave no thread, or no working directory; Python refused the folder.
    pub fn start(config: Arc<Config>, venv: &Path, version: &str) -> Result<Arc<Self>, String> {
        let here =
            std::env::current_dir().map_err(|error| format!("there is no working directory: {error}"))?;
        let base = here.join(config.text(REQUIREMENTS_DIR));
        let version = version.split('.').take(2).collect::<Vec<_>>().join(".");
        let (jobs, wanted) = mpsc::channel::<Job>();
        let packages = Self {
            config,
            pip: Pip {
                program: venv.join("bin/python"),
                environment: base.join(format!("python-{version}")),
                version,
            },
            base,
            jobs,
        };
        let life = move || wanted.into_iter().for_each(|job| job());
        thread::Builder::new()
            .name("pinion-pip".into())
            .spawn(life)
            .map_err(|error| format!("could not start the thread for requirements: {error}"))?;
        if packages.pip.site_packages().is_dir() {
            packages.use_installed(&[])?;
        }
        Ok(Arc::new(packages))
    }

    /// Checks what a client asks for.
    ///
    /// # Errors
    /// A requirement that is none, or that RequirementsPolicy forbids.
    pub fn check(&self, names: &[String]) -> Result<(), Error> {
        let policy = self.config.text(REQUIREMENTS_POLICY);
        let check = |name: &String| {
            specifier::check(name)?;
            specifier::check_policy(&policy, name)
        };
        names.iter().try_for_each(check).map_err(Error::Text)
    }

    /// Does `job` on the thread for requirements, after all that it was given before.
    pub fn later(&self, job: impl FnOnce() + Send + 'static) {
        // The receiver lives as long as the process.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Fetches and installs requirements; `known`: those of the same names that are installed again if that fails. On the
    /// thread for requirements.
    ///
    /// # Errors
    /// Nothing has changed then; the log tells more.
    pub fn obtain(
        &self,
        names: &[String],
        known: &[Arc<Requirement>],
    ) -> Result<Vec<Arc<Requirement>>, Error> {
        let mut fetched = Vec::new();
        for name in names {
            fetched.push(self.fetch(name)?);
        }
        if let Err(error) = self.install(&fetched) {
            api::log_warning(&format!("requirements were not installed: {error}"));
            let is_new = |requirement: &&Arc<Requirement>| {
                !known.iter().any(|known| known.directory == requirement.directory)
            };
            fetched
                .iter()
                .filter(is_new)
                .for_each(|requirement| requirement.forget());
            if let Err(error) = self.install(known) {
                api::log_warning(&format!("could not install what was there before: {error}"));
            }
            return Err(Error::RequirementsNotInstalled);
        }
        Ok(fetched)
    }

    fn fetch(&self, name: &str) -> Result<Arc<Requirement>, Error> {
        let directory = self.base.join(format!(".fetching_{}", short_name(name)));
        // Left over by a process that was killed.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).map_err(|error| {
            api::log_warning(&format!("could not create {}: {error}", directory.display()));
            Error::NoRequirementsDirectory
        })?;
        let fetched = self
            .pip
            .fetch(name, &directory)
            .and_then(|()| self.settle(name, &directory));
        fetched.map_err(|error| {
            api::log_warning(&format!("requirement {name} was not fetched: {error}"));
            let _ = fs::remove_dir_all(&directory);
            Error::RequirementsNotFetched
        })
    }

    /// Gives fetched files their place, which tells what they are: the same files have the same place.
    fn settle(&self, name: &str, directory: &Path) -> Result<Arc<Requirement>, String> {
        let failed = |error: io::Error| format!("{}: {error}", directory.display());
        let mut wheels = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let file_name = entry.map_err(failed)?.file_name();
            wheels.push(
                file_name
                    .into_string()
                    .map_err(|name| format!("a file with the name {}", name.to_string_lossy()))?,
            );
        }
        wheels.sort();
        if wheels.is_empty() {
            return Err("pip has left no wheel".into());
        }
        let mut digest = Sha256::new();
        for wheel in &wheels {
            digest.update(wheel);
            digest.update(fs::read(directory.join(wheel)).map_err(failed)?);
        }
        let place = self.place(name, digest);
        if place.exists() {
            fs::remove_dir_all(directory).map_err(failed)?;
        } else {
            fs::rename(directory, &place).map_err(failed)?;
        }
        Ok(Arc::new(Requirement::new(name.into(), place, wheels, platform())))
    }

    fn place(&self, name: &str, digest: Sha256) -> PathBuf {
        let digest = digest.finalize();
        let mut file_name = short_name(name) + "_";
        for byte in digest.iter().take(5) {
            let _ = write!(file_name, "{byte:02x}");
        }
        self.base.join(file_name)
    }

    /// Writes files that came from elsewhere to their place.
    ///
    /// # Errors
    /// A name that is no file name; what the operating system says. Nothing is left behind.
    pub fn store(&self, files: &Files) -> Result<Arc<Requirement>, Error> {
        let mut digest = Sha256::new();
        for (wheel, content) in &files.wheels {
            if wheel.is_empty() || wheel.starts_with('.') || wheel.contains(['/', '\0']) {
                return Err(Error::RequirementFileNotOpened);
            }
            digest.update(wheel);
            digest.update(content);
        }
        let place = self.place(&files.name, digest);
        let wheels = files.wheels.iter().map(|(wheel, _)| wheel.clone()).collect();
        let requirement = Requirement::new(files.name.clone(), place, wheels, files.platform.clone());
        if requirement.directory.exists()
            && files
                .wheels
                .iter()
                .all(|(wheel, content)| requirement.read(wheel).as_ref() == Ok(content))
        {
            return Ok(Arc::new(requirement));
        }
        let written = fs::create_dir_all(&requirement.directory)
            .map_err(|error| (Error::RequirementFileNotOpened, error))
            .and_then(|()| {
                files.wheels.iter().try_for_each(|(wheel, content)| {
                    fs::write(requirement.directory.join(wheel), content)
                        .map_err(|error| (Error::RequirementFileNotWritten, error))
                })
            });
        written.map_err(|(text, error)| {
            api::log_warning(&format!(
                "could not write {}: {error}",
                requirement.directory.display()
            ));
            let _ = fs::remove_dir_all(&requirement.directory);
            text
        })?;
        Ok(Arc::new(requirement))
    }

    /// Installs requirements, in their order, unless an earlier process has. Not under the server's lock, but while data
    /// are loaded.
    ///
    /// # Errors
    /// What pip said last.
    pub fn restore(&self, requirements: &[Arc<Requirement>]) -> Result<(), String> {
        if requirements
            .iter()
            .all(|requirement| self.pip.has_installed(&requirement.directory))
        {
            for requirement in requirements {
                requirement.set_installed();
            }
            return Ok(());
        }
        self.install(requirements)
    }

    /// Installs requirements, in their order, whatever is there.
    ///
    /// # Errors
    /// What pip said last.
    pub fn install(&self, requirements: &[Arc<Requirement>]) -> Result<(), String> {
        for requirement in requirements {
            let path = |wheel| requirement.directory.join(wheel);
            let wheels: Vec<_> = requirement.wheels.iter().map(path).collect();
            self.pip.install(&wheels)?;
            self.pip.note_installed(&requirement.directory);
            requirement.set_installed();
            self.use_installed(&wheels)?;
        }
        Ok(())
    }

    fn use_installed(&self, wheels: &[PathBuf]) -> Result<(), String> {
        static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
        Python::attach(|py| {
            let module = MODULE.get_or_try_init(py, || {
                PyModule::from_code(py, PACKAGES, c"<pinion>/packages.py", c"pinion_packages")
                    .map(Bound::unbind)
            })?;
            let arguments = (self.pip.site_packages(), wheels);
            let site_packages = arguments.0.to_string_lossy().into_owned();
            module
                .bind(py)
                .call_method1("use", (site_packages, arguments.1))
                .map(drop)
        })
        .map_err(|error: PyErr| {
            format!(
                "Python does not import from {}: {error}",
                self.pip.site_packages().display()
            )
        })
    }
}

/// A requirement as the beginning of a file name.
fn short_name(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._=<>-".contains(c) {
            c
        } else {
            '_'
        }
    };
    name.trim_start_matches('.').chars().map(plain).take(80).collect()
}
