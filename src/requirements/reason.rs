//! Why pip failed, in one line for the client: the log has all that it said.

/// The longest reason.
const MAX_LENGTH: usize = 400;
/// How many of the versions that there are, the newest ones, are shown.
const SHOWN_VERSIONS: usize = 5;

/// What Python says where pip is missing, as in Debian without python3-pip.
const NO_PIP: &str = "No module named pip";
const WITHOUT_PIP: &str = "the server's Python has no pip: install it (Debian: python3-pip), or name a virtual environment that has \
    it with the option PythonVenv";

/// What failed, as far as it matters for another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A source distribution could not be built.
    NotBuilt,
    /// What builds it could not be fetched.
    NoBuildTools,
    /// There is no pip.
    NoPip,
    Other,
}

/// A command that failed.
#[derive(Debug, PartialEq, Eq)]
pub struct PipFailure {
    pub reason: String,
    pub cause: Cause,
}

impl PipFailure {
    pub fn plain(reason: String) -> Self {
        Self {
            reason,
            cause: Cause::Other,
        }
    }
}

/// The reason in what pip wrote last; `otherwise`: how its process ended.
pub fn of(lines: &[String], otherwise: String) -> PipFailure {
    let said = |text: &str| lines.iter().any(|line| line.contains(text));
    let no_tools = said("to install build dependencies did not run successfully");
    let cause = if no_tools {
        Cause::NoBuildTools
    } else if said("Failed building wheel")
        || said("metadata-generation-failed")
        || said("to build wheel did not run")
    {
        Cause::NotBuilt
    } else {
        Cause::Other
    };
    if said(NO_PIP) {
        return PipFailure {
            reason: WITHOUT_PIP.to_owned(),
            cause: Cause::NoPip,
        };
    }
    let reason = match cause {
        Cause::NotBuilt => not_built(lines),
        Cause::NoBuildTools => {
            not_found(lines).map(|reason| format!("what builds it was not found: {reason}"))
        }
        Cause::NoPip | Cause::Other => not_found(lines),
    };
    let reason = reason.or_else(|| last_error(lines)).unwrap_or(otherwise);
    PipFailure {
        reason: shortened(&reason),
        cause,
    }
}

/// No such name, no such version, none for this Python.
fn not_found(lines: &[String]) -> Option<String> {
    let after = |start: &str| lines.iter().find_map(|line| error(line)?.strip_prefix(start));
    let missing = after("Could not find a version that satisfies the requirement ")?;
    let mut reason = match missing.split_once(" (from versions: ") {
        Some((wanted, versions)) => {
            let versions: Vec<_> = versions.trim_end_matches(')').split(", ").collect();
            let newest = versions.len().saturating_sub(SHOWN_VERSIONS);
            let shown = versions[newest..].join(", ");
            let dots = if newest > 0 { "..., " } else { "" };
            format!("no version found that satisfies {wanted} (there are: {dots}{shown})")
        }
        None => format!("no version found that satisfies {missing}"),
    };
    if let Some(ignored) = after("Ignored the following versions that require a different python version: ") {
        reason.push_str("; for another Python: ");
        reason.push_str(ignored);
    }
    Some(reason)
}

/// The package, and the first line of its build that tells what is wrong.
fn not_built(lines: &[String]) -> Option<String> {
    let named = |line: &'_ String| {
        Some(
            error(line)?
                .strip_prefix("Failed building wheel for ")?
                .to_owned(),
        )
    };
    let package = lines.iter().find_map(named).or_else(|| looked_at(lines));
    let says = |line: &&String| line.contains(": error: ") || line.contains("fatal error: ");
    let compiler = lines.iter().find(says);
    // Otherwise an exception of its setup.py, or what that said last.
    let end = lines.iter().position(|line| line.trim() == "[end of output]");
    let last = || lines[..end?].iter().rev().find(|line| !line.trim().is_empty());
    let detail = compiler.or_else(last)?.trim();
    Some(match package {
        Some(package) => format!("{package} could not be built: {detail}"),
        None => format!("it could not be built: {detail}"),
    })
}

/// Whether the lines tell that something failed.
pub fn tells(lines: &[String]) -> bool {
    lines
        .iter()
        .any(|line| error(line).is_some() || line.starts_with("Error: "))
}

/// The package, or its file, that pip began with last: it learns of one after the other what they need.
fn looked_at(lines: &[String]) -> Option<String> {
    lines.iter().rev().find_map(|line| {
        let line = line.trim_start();
        let named = line.strip_prefix("Collecting ");
        let named = named.or_else(|| line.strip_prefix("Processing ")?.rsplit('/').next());
        Some(named?.split(' ').next()?.to_owned())
    })
}

/// An exception in pip itself comes with a traceback, and stands at its end.
fn last_error(lines: &[String]) -> Option<String> {
    match lines.iter().rev().find_map(|line| error(line))? {
        "Exception:" => lines.iter().rfind(|line| !line.trim().is_empty()).cloned(),
        said => Some(said.to_owned()),
    }
}

fn error(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("ERROR: ")
        .or_else(|| line.strip_prefix("error: "))
}

fn shortened(reason: &str) -> String {
    let plain: String = reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match plain.char_indices().nth(MAX_LENGTH) {
        Some((end, _)) => format!("{}...", &plain[..end]),
        None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    /// Whatever pip says, the reason is one line of bounded length.
    #[test]
    fn fuzz_reasons() {
        let seeds = [
            "Collecting demo\nERROR: Could not find a version that satisfies the requirement x (from versions: 1, 2, 3)\n",
            "error: a\n x.c:1: error: b\n [end of output]\n ERROR: Failed building wheel for zone\n",
            "ERROR: Exception:\nTraceback\nBackendUnavailable: nowhere\n",
            "to install build dependencies did not run successfully\nProcessing /a/b.tar.gz (from c)\n",
        ];
        fuzz("reason", &seeds.map(|seed| seed.as_bytes().to_vec()), |input| {
            let failed = of_text(&String::from_utf8_lossy(input));
            assert!(!failed.reason.contains(char::is_control), "{failed:?}");
            assert!(failed.reason.chars().count() <= MAX_LENGTH + 3);
            format!(
                "{:?} {}",
                failed.cause,
                failed.reason.split(' ').take(3).collect::<Vec<_>>().join(" ")
            )
        });
    }

    fn of_text(text: &str) -> PipFailure {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        of(&lines, "it ended with exit status: 1".into())
    }

    #[test]
    fn a_name_or_version_that_does_not_exist() {
        let failed = of_text(
            "Looking in links: /wheels\n\
             ERROR: Could not find a version that satisfies the requirement nowhere (from versions: none)\n\
             ERROR: No matching distribution found for nowhere",
        );
        assert_eq!(
            failed.reason,
            "no version found that satisfies nowhere (there are: none)"
        );
        assert_eq!(failed.cause, Cause::Other);
        let failed = of_text(
            "ERROR: Ignored the following versions that require a different python version: 3.10 Requires-Python <3.5\n\
             ERROR: Could not find a version that satisfies the requirement typing==3.10 (from versions: 1, 2, 3, 4, 5, 6)",
        );
        assert_eq!(
            failed.reason,
            "no version found that satisfies typing==3.10 (there are: ..., 2, 3, 4, 5, 6); for another Python: \
             3.10 Requires-Python <3.5"
        );
    }

    #[test]
    fn what_does_not_compile() {
        let failed = of_text(
            "  error: subprocess-exited-with-error\n\
             \u{20}     x.c: In function 'f':\n\
             \u{20}     x.c:600:19: error: '_PyLong_One' undeclared\n\
             \u{20}     error: command '/usr/bin/gcc' failed with exit code 1\n\
             \u{20}     [end of output]\n\
             \u{20} ERROR: Failed building wheel for zone\n\
             ERROR: PipFailure to build one or more wheels",
        );
        assert_eq!(
            failed.reason,
            "zone could not be built: x.c:600:19: error: '_PyLong_One' undeclared"
        );
        assert_eq!(failed.cause, Cause::NotBuilt);
    }

    #[test]
    fn a_setup_that_raises() {
        let failed = of_text(
            "  error: subprocess-exited-with-error\n\
             \u{20}     RuntimeError: no pg_config\n\
             \u{20}     [end of output]\n\
             error: metadata-generation-failed",
        );
        assert_eq!(failed.reason, "it could not be built: RuntimeError: no pg_config");
    }

    #[test]
    fn the_one_that_another_one_needs() {
        let end = "\n    RuntimeError: no pg_config\n    [end of output]\nerror: metadata-generation-failed";
        for (line, name) in [
            ("Collecting inner>=2 (from outer)", "inner>=2"),
            (
                "Processing /packages/inner-1.0.tar.gz (from outer)",
                "inner-1.0.tar.gz",
            ),
        ] {
            assert_eq!(
                of_text(&format!("Collecting outer\n{line}{end}")).reason,
                format!("{name} could not be built: RuntimeError: no pg_config")
            );
        }
    }

    #[test]
    fn an_exception_of_pip_itself() {
        let failed = of_text(
            "ERROR: Exception:\nTraceback (most recent call last):\n  File\nBackendUnavailable: nowhere\n",
        );
        assert_eq!(failed.reason, "BackendUnavailable: nowhere");
    }

    #[test]
    fn what_builds_it_is_missing() {
        let failed = of_text(
            "  × pip subprocess to install build dependencies did not run successfully.\n\
             \u{20}     ERROR: Could not find a version that satisfies the requirement setuptools>=40.8.0 (from versions: none)\n\
             \u{20}     [end of output]",
        );
        assert_eq!(failed.cause, Cause::NoBuildTools);
        assert!(failed.reason.contains("setuptools>=40.8.0"), "{}", failed.reason);
    }

    #[test]
    fn a_python_without_pip() {
        let failed = of_text("/usr/bin/python3: No module named pip");
        assert_eq!(failed.reason, WITHOUT_PIP);
    }

    #[test]
    fn anything_else_is_one_short_line() {
        assert_eq!(of_text("").reason, "it ended with exit status: 1");
        assert_eq!(of_text("ERROR: one\nERROR: two\nbye").reason, "two");
        let long = of_text(&format!("ERROR: {}", "ü".repeat(1000)));
        assert_eq!(long.reason.chars().count(), MAX_LENGTH + 3);
    }
}
