//! Which Python: that of the environment that is given, else the one that the module is installed in, else `python3`.

use alloc::{
    format,
    string::{String, ToString},
};

use crate::system::{exists, real_path};

/// The module argument with the folder of a virtual environment.
const OPTION: &str = "PythonVenv";
/// A virtual environment, or a link to one, beside the module.
const BESIDE: &str = "venv";
/// How many folders above the module an environment may be.
const DEPTH: usize = 8;

/// An interpreter to ask.
#[derive(Debug, PartialEq)]
pub struct Choice {
    /// A path, or a name to look for in PATH.
    pub program: String,
    /// The folder of the virtual environment, as whoever chose it calls it.
    pub prefix: Option<String>,
    /// Why this one, for messages.
    pub reason: String,
}

/// Chooses for a module in `folder`.
///
/// # Errors
/// What is given is no virtual environment.
pub fn choose(arguments: &[String], folder: &str) -> Result<Choice, String> {
    let mut pairs = arguments.chunks(2);
    let given = pairs.rfind(|pair| pair.first().is_some_and(|name| name == OPTION));
    if let Some(venv) = given.and_then(|pair| pair.get(1)) {
        return environment(venv, "the module argument PythonVenv");
    }
    let beside = real_path(&format!("{folder}/{BESIDE}"));
    if let Some(venv) = beside.filter(|venv| exists(&format!("{venv}/pyvenv.cfg"))) {
        return environment(&venv, "the environment beside the module");
    }
    let mut above = ancestors(folder).take(DEPTH);
    if let Some(venv) = above.find(|folder| exists(&format!("{folder}/pyvenv.cfg"))) {
        return environment(venv, "the environment that the module is installed in");
    }
    if let Some((prefix, name)) = installation(folder) {
        let program = format!("{prefix}/bin/{name}");
        let program = if exists(&program) {
            program
        } else {
            name.to_string()
        };
        let reason = "the Python that the module is installed in".to_string();
        return Ok(Choice {
            program,
            prefix: None,
            reason,
        });
    }
    let reason = "python3 in PATH, because the module is in no environment".to_string();
    Ok(Choice {
        program: "python3".into(),
        prefix: None,
        reason,
    })
}

fn environment(venv: &str, reason: &str) -> Result<Choice, String> {
    let hint = "make one with `python3 -m venv <dir>`, or name another one with the module argument PythonVenv <dir>";
    if !exists(&format!("{venv}/pyvenv.cfg")) {
        return Err(format!(
            "{venv} is no Python virtual environment (it has no pyvenv.cfg): {hint}"
        ));
    }
    let program = format!("{venv}/bin/python");
    if !exists(&program) {
        return Err(format!(
            "the virtual environment {venv} has no working bin/python: {hint}"
        ));
    }
    Ok(Choice {
        program,
        prefix: Some(venv.into()),
        reason: reason.into(),
    })
}

/// A path and all folders above it.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    core::iter::successors(Some(path), |path| {
        let (above, _) = path.rsplit_once('/')?;
        (!above.is_empty()).then_some(above)
    })
}

/// `/usr/local` and `python3.12` of `/usr/local/lib/python3.12/site-packages/...`.
fn installation(folder: &str) -> Option<(&str, &str)> {
    ancestors(folder).find_map(|path| {
        let (library, name) = path.rsplit_once('/')?;
        let (prefix, library) = library.rsplit_once('/')?;
        let is_python = name
            .strip_prefix("python3.")
            .is_some_and(|minor| minor.parse::<u8>().is_ok());
        (is_python && matches!(library, "lib" | "lib64")).then_some((prefix, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_is_seen_by_its_folders() {
        let folder = "/usr/local/lib/python3.12/site-packages/pinion_redis";
        assert_eq!(installation(folder), Some(("/usr/local", "python3.12")));
        assert_eq!(installation("/usr/lib/pinion"), None);
        assert_eq!(installation("/usr/lib/python3/dist-packages/pinion_redis"), None);
    }

    #[test]
    fn what_is_given_comes_first_and_must_be_an_environment() {
        let words = ["ExecutionThreads", "2", "PythonVenv", "/nowhere/venv"].map(String::from);
        let error = choose(&words, "/usr/lib/pinion").err().unwrap_or_default();
        assert!(
            error.starts_with("/nowhere/venv is no Python virtual environment"),
            "{error}"
        );
        assert!(!error.contains('\n'));
    }

    #[test]
    fn a_module_in_no_environment_takes_python3() {
        let choice = choose(&[], "/usr/lib/pinion");
        assert_eq!(choice.map(|choice| choice.program), Ok("python3".into()));
    }
}
