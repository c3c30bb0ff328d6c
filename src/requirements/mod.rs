//! Requirements of sessions: fetched, kept as files, installed, made importable. Contract:
//! docs/contract/commands.md 4.6.
//!
//! One thread does it all, one job after the other, without the server's lock. Packages are installed into a virtual
//! environment of this server's own, in its working directory, in front of the one that the module was started with. Several
//! servers may have one working directory: the port tells their environments apart.

pub mod archive;
mod pip;
mod reason;
mod specifier;
mod sweep;

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

pub use self::specifier::is_shipped;
use self::{archive::Header, pip::Pip, sweep::Owner};
use crate::{
    config::{Config, REQUIREMENTS_DIR, REQUIREMENTS_POLICY},
    engine::{
        language::Language,
        requirement::{Places, Requirement},
    },
    error::Error,
    server::api,
    threads,
};

/// What the thread is to do.
type Job = Box<dyn FnOnce() + Send>;

/// The requirements of this server.
pub struct Packages {
    config: Arc<Config>,
    language: Arc<dyn Language>,
    /// Where the files of requirements and the environment are.
    base: PathBuf,
    pip: Pip,
    places: Arc<Places>,
    owner: Owner,
    jobs: mpsc::Sender<Job>,
}

/// A requirement that was fetched, and what carries it elsewhere.
pub struct Fetched {
    pub requirement: Arc<Requirement>,
    pub archive: Vec<u8>,
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
    /// Starts the thread, and makes importable what an earlier process has installed. `program`: the interpreter that has
    /// pip; `version`: that of Python, e.g. `3.11.2`; `port`: where this server listens.
    ///
    /// # Errors
    /// The operating system gave no thread, or no working directory; Python refused the folder.
    pub fn start(
        config: Arc<Config>,
        language: Arc<dyn Language>,
        program: &Path,
        version: &str,
        port: u16,
    ) -> Result<Arc<Self>, String> {
        let here =
            std::env::current_dir().map_err(|error| format!("there is no working directory: {error}"))?;
        let base = here.join(config.text(REQUIREMENTS_DIR));
        let version = version.split('.').take(2).collect::<Vec<_>>().join(".");
        let (jobs, wanted) = mpsc::channel::<Job>();
        let packages = Self {
            config,
            language,
            pip: Pip {
                program: program.to_owned(),
                environment: base.join(format!("python-{version}-{port}")),
                version,
            },
            base,
            places: Arc::default(),
            owner: Owner::default(),
            jobs,
        };
        let life = move || {
            for job in wanted {
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    api::log_warning("a job of the thread for requirements failed");
                }
            }
        };
        threads::spawn("pinion-pip".into(), life)
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

    /// Checks what an archive brings: where not everything is allowed, each of its wheels must be.
    ///
    /// # Errors
    /// A wheel that RequirementsPolicy forbids.
    pub fn check_wheels(&self, wheels: &[String]) -> Result<(), Error> {
        let policy = self.config.text(REQUIREMENTS_POLICY);
        if policy == "allow" {
            return Ok(());
        }
        let check = |wheel: &String| specifier::check_policy(&policy, &specifier::of_wheel(wheel)?);
        wheels.iter().try_for_each(check).map_err(Error::Text)
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
    /// Nothing has changed then, and nothing is left behind; the log tells more.
    pub fn obtain(&self, names: &[String], known: &[Arc<Requirement>]) -> Result<Vec<Fetched>, Error> {
        let fetched = names
            .iter()
            .map(|name| self.fetch(name))
            .collect::<Result<Vec<_>, _>>()?;
        let requirements: Vec<_> = fetched
            .iter()
            .map(|fetched| Arc::clone(&fetched.requirement))
            .collect();
        if let Err(failure) = self.install(&requirements) {
            api::log_warning(&format!("requirements were not installed: {failure}"));
            if let Err(error) = self.install(known) {
                api::log_warning(&format!("could not install what was there before: {error}"));
            }
            return Err(Error::RequirementsNotInstalled(failure));
        }
        Ok(fetched)
    }

    fn fetch(&self, name: &str) -> Result<Fetched, Error> {
        let folder = self.unfinished("fetching", name).map_err(|error| {
            api::log_warning(&format!(
                "could not create a folder in {}: {error}",
                self.base.display()
            ));
            Error::NoRequirementsDirectory
        })?;
        let fetched = self
            .pip
            .fetch(name, &folder.0)
            .and_then(|()| self.settle(name, folder));
        fetched.map_err(|error| {
            let failure = format!("{name}: {error}");
            api::log_warning(&format!("requirement {name} was not fetched: {error}"));
            Error::RequirementsNotFetched(failure)
        })
    }

    /// A folder of this process for files that are not all there yet.
    fn unfinished(&self, what: &str, name: &str) -> io::Result<Unfinished> {
        let folder = Unfinished::make(&self.base, what, name)?;
        self.owner.announce(&self.base)?;
        Ok(folder)
    }

    /// Gives fetched files their place, which tells what they are: the same files have the same place.
    fn settle(&self, name: &str, folder: Unfinished) -> Result<Fetched, String> {
        let failed = |error: io::Error| format!("{}: {error}", folder.0.display());
        let mut wheels = Vec::new();
        for entry in fs::read_dir(&folder.0).map_err(failed)? {
            let wheel = entry.map_err(failed)?.file_name();
            let wheel = wheel
                .into_string()
                .map_err(|name| format!("a file with the name {}", name.to_string_lossy()))?;
            let content = fs::read(folder.0.join(&wheel)).map_err(failed)?;
            wheels.push((wheel, content));
        }
        wheels.sort_unstable();
        if wheels.is_empty() {
            return Err("pip has left no wheel".into());
        }
        let files = Files {
            name: name.into(),
            platform: platform(),
            wheels,
        };
        let archive = archive::encode(&files);
        let header = archive::header(&archive).map_err(|error| error.to_string())?;
        let requirement = Arc::new(self.requirement(&header));
        if !has_files(&requirement, &files) {
            folder
                .become_folder(requirement.directory())
                .map_err(|error| format!("{}: {error}", requirement.directory().display()))?;
        }
        Ok(Fetched { requirement, archive })
    }

    /// A requirement that comes as bytes. Its files may be on the disk already, or not yet.
    pub fn requirement(&self, header: &Header) -> Requirement {
        let folder = short_name(&header.name) + "_" + &hex::encode(&header.digest[..FOLDER_DIGEST]);
        Requirement::new(
            header.name.clone(),
            self.places.take(self.base.join(folder)),
            header.wheels.clone(),
            header.platform.clone(),
            header.digest,
        )
    }

    /// Writes files that came from elsewhere to their place, all or none.
    ///
    /// # Errors
    /// What the operating system says is in the log.
    pub fn store(&self, requirement: &Requirement, files: &Files) -> Result<(), Error> {
        if has_files(requirement, files) {
            return Ok(());
        }
        let failed = |text: Error| {
            move |error: io::Error| {
                api::log_warning(&format!(
                    "could not write {}: {error}",
                    requirement.directory().display()
                ));
                text
            }
        };
        let folder = self
            .unfinished("storing", &files.name)
            .map_err(failed(Error::RequirementFileNotOpened))?;
        for (wheel, content) in &files.wheels {
            fs::write(folder.0.join(wheel), content).map_err(failed(Error::RequirementFileNotWritten))?;
        }
        folder
            .become_folder(requirement.directory())
            .map_err(failed(Error::RequirementFileNotWritten))
    }

    /// Whether an earlier process has installed a requirement, and its files are what they were.
    pub fn has_installed(&self, requirement: &Requirement, files: &Files) -> bool {
        self.pip.has_installed(requirement.directory()) && has_files(requirement, files)
    }

    /// Installs requirements, in their order, whatever is there. On the thread for requirements.
    ///
    /// # Errors
    /// What pip said last.
    pub fn install(&self, requirements: &[Arc<Requirement>]) -> Result<(), String> {
        for requirement in requirements {
            let path = |wheel| requirement.directory().join(wheel);
            let wheels: Vec<_> = requirement.wheels.iter().map(path).collect();
            let named = |error| format!("{}: {error}", requirement.name);
            self.pip.install(&wheels).map_err(named)?;
            self.pip.note_installed(requirement.directory());
            self.use_installed(&wheels)?;
            requirement.set_installed();
        }
        Ok(())
    }

    /// Deletes what earlier processes of this server have left in its folder and nobody needs. `owner` tells it from other
    /// servers that may use the same folder. On the thread for requirements, when the data are loaded.
    pub fn sweep(&self, owner: &str) {
        match self.owner.sweep(&self.base, owner, &self.places) {
            Ok(deleted) => {
                for folder in deleted {
                    api::log_notice(&format!("{} was left over and is deleted", folder.display()));
                }
            }
            Err(error) => {
                api::log_warning(&format!("could not tidy up {}: {error}", self.base.display()));
            }
        }
    }

    fn use_installed(&self, wheels: &[PathBuf]) -> Result<(), String> {
        let folder = self.pip.site_packages();
        self.language
            .use_packages(&folder, wheels)
            .map_err(|error| format!("Python does not import from {}: {error}", folder.display()))
    }
}

/// How much of a requirement's digest is in the name of its folder.
const FOLDER_DIGEST: usize = 5;

/// Whether the files of a requirement are on the disk, as they should be.
fn has_files(requirement: &Requirement, files: &Files) -> bool {
    let mut wheels = files.wheels.iter();
    wheels.all(|(wheel, content)| requirement.read(wheel).as_ref() == Ok(content))
}

/// A folder whose files are not all there yet. It goes when it is dropped.
struct Unfinished(PathBuf);

impl Unfinished {
    /// Several servers may do the same in the same folder: the name tells which process it is.
    fn make(base: &Path, what: &str, name: &str) -> io::Result<Self> {
        let folder = base.join(format!(".{what}_{}_{}", std::process::id(), short_name(name)));
        // Left over by a process with the same number that was killed.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// Gives it its name, in the place of what may be there.
    fn become_folder(self, folder: &Path) -> io::Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::rename(&self.0, folder)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Not there any more once it has its name.
        let _ = fs::remove_dir_all(&self.0);
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
