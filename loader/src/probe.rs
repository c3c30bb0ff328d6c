//! What an interpreter says about itself.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use crate::{environment::Choice, system};

/// A line in front of the answer: what stands before it comes from others.
const MARK: &str = "pinion-probe";

/// Prints, each on a line: the mark, the implementation, X.Y, the interpreter, its prefix and base prefix, folders and name of
/// its library, whether it has the library, whether it is free of the GIL.
const SCRIPT: &str = "import sys, sysconfig
v = lambda name: str(sysconfig.get_config_var(name) or '')
print('pinion-probe', sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.executable, sys.prefix, sys.base_prefix,
      v('LIBDIR'), v('MULTIARCH'), v('Py_ENABLE_SHARED'), v('Py_GIL_DISABLED'), 'end', sep='\\n')";

/// An interpreter that the module can run.
#[derive(Debug)]
pub struct Python {
    pub program: String,
    /// What `sys.prefix` will be.
    pub prefix: String,
    pub base_prefix: String,
    /// E.g. `3.11`.
    pub version: String,
    /// Where its library may be.
    pub folders: Vec<String>,
    /// It says that it was built with a shared library.
    pub shared: bool,
}

/// Runs the interpreter and asks.
///
/// # Errors
/// It does not run, or is none that the module can be built for.
pub fn ask(choice: &Choice) -> Result<Python, String> {
    let Choice { program, reason, .. } = choice;
    let text = system::output(&[program, "-I", "-c", SCRIPT])
        .map_err(|error| format!("{program} ({reason}) cannot be run: {error}"))?;
    let mut python = parse(&text).map_err(|error| format!("{program} ({reason}) {error}"))?;
    if let Some(prefix) = &choice.prefix {
        python.program.clone_from(program);
        python.prefix.clone_from(prefix);
    }
    Ok(python)
}

fn parse(text: &str) -> Result<Python, String> {
    let lines: Vec<&str> = text.lines().skip_while(|line| *line != MARK).skip(1).collect();
    let [
        implementation,
        version,
        program,
        prefix,
        base_prefix,
        library,
        arch,
        shared,
        free,
        "end",
    ] = lines[..]
    else {
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        return Err(format!("does not work: {}", last.unwrap_or("it says nothing")));
    };
    if implementation != "cpython" {
        return Err(format!("is {implementation}: CPython 3.9 or newer is needed"));
    }
    if free == "1" {
        return Err(format!(
            "is a free-threaded build of Python {version}, for which there is no build of Pinion"
        ));
    }
    let below = format!("{base_prefix}/lib");
    let folders = [library, below.as_str()]
        .into_iter()
        .filter(|folder| !folder.is_empty());
    let folders = folders.flat_map(|folder| [folder.to_string(), format!("{folder}/{arch}")]);
    Ok(Python {
        program: program.into(),
        prefix: prefix.into(),
        base_prefix: base_prefix.into(),
        version: version.into(),
        folders: folders.collect(),
        shared: shared == "1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "noise\npinion-probe\ncpython\n3.11\n/v/bin/python\n/v\n/usr\n/usr/lib\nx86_64-linux-gnu\n1\n\nend\n";

    #[test]
    fn an_answer_is_read_behind_its_mark() {
        let python = parse(TEXT);
        assert_eq!(python.as_ref().map(|python| python.version.as_str()), Ok("3.11"));
        let folders = python.map(|python| python.folders).unwrap_or_default();
        assert_eq!(folders[..2], ["/usr/lib", "/usr/lib/x86_64-linux-gnu"]);
    }

    #[test]
    fn others_are_refused_in_one_line() {
        for (text, reason) in [
            (TEXT.replace("cpython", "pypy"), "is pypy: CPython 3.9"),
            (TEXT.replace("1\n\nend", "1\n1\nend"), "is a free-threaded build"),
            (
                "Traceback\nValueError: x\n".into(),
                "does not work: ValueError: x",
            ),
            (String::new(), "does not work: it says nothing"),
        ] {
            let error = parse(&text).err().unwrap_or_default();
            assert!(error.starts_with(reason) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_script_is_one_that_python_runs() {
        let choice = Choice {
            program: "python3".into(),
            prefix: None,
            reason: "a test".into(),
        };
        assert!(ask(&choice).is_ok_and(|python| python.version.starts_with("3.")));
    }
}
