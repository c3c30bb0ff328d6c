//! Which requirements may be asked for: what pip can understand at all, and what the option RequirementsPolicy allows.

use std::fs;

/// Longer ones are no requirement of anybody.
const MAX_LENGTH: usize = 1000;

/// Where clients that use gearsclient tell the server to install it from, unless they are told not to. What they need here is
/// part of the module, and what is there is for old Pythons only.
const CLIENT: &str = "git+https://github.com/RedisGears/redisgears-py";

/// Whether a requirement is there already, as a part of the module.
pub fn is_shipped(specifier: &str) -> bool {
    let rest = specifier.strip_prefix(CLIENT);
    rest.is_some_and(|rest| matches!(rest, "" | "/" | ".git"))
}

/// Checks that a text can be handed to pip as one requirement: a name with versions and extras, a URL, a path.
///
/// # Errors
/// The text for the client: which requirement, and what is wrong with it.
pub fn check(specifier: &str) -> Result<(), String> {
    let reason = if specifier.is_empty() {
        "it is empty"
    } else if specifier.len() > MAX_LENGTH {
        "it is longer than 1000 bytes"
    } else if specifier.chars().any(char::is_control) {
        "it holds a control character"
    } else if !specifier
        .starts_with(|first: char| first.is_ascii_alphanumeric() || matches!(first, '.' | '/'))
    {
        "it must begin with a letter, a digit, '.' or '/'"
    } else if !is_well_formed(specifier) {
        "it is neither a name with versions, nor a URL, nor a path"
    } else {
        return Ok(());
    };
    Err(format!(
        "ERR bad requirement '{specifier}': {reason}, expected e.g. 'redis', 'redis>=5' or 'git+https://...'"
    ))
}

/// Whether it looks like one of the three kinds; whether it names something is for pip to say.
fn is_well_formed(specifier: &str) -> bool {
    let in_place = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\'' | '`' | '<' | '>' | '|' | ';');
    if specifier.contains("://") && !specifier.contains(" @ ") || specifier.starts_with(['.', '/']) {
        return specifier.chars().all(in_place);
    }
    let (wanted, _marker) = specifier.split_once(';').unwrap_or((specifier, ""));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let rest = wanted.trim_start_matches(is_name).trim();
    let rest = match rest.strip_prefix('[').map(|extras| extras.split_once(']')) {
        Some(Some((extras, rest))) if extras.chars().all(|c| is_name(c) || matches!(c, ',' | ' ')) => {
            rest.trim()
        }
        Some(_) => return false,
        None => rest,
    };
    let versions = |c: char| c.is_ascii_alphanumeric() || " .,*+!<>=~()-_".contains(c);
    match rest.strip_prefix('@') {
        Some(url) => url.trim().chars().all(in_place),
        None => {
            rest.is_empty()
                || (rest.starts_with(['=', '<', '>', '~', '!', '(']) && rest.chars().all(versions))
        }
    }
}

/// The project that a requirement names, in its normal form; `None` for URLs and paths.
fn project(specifier: &str) -> Option<String> {
    let end = specifier
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
        .unwrap_or(specifier.len());
    let (name, rest) = specifier.split_at(end);
    let rest = rest.trim_start();
    let is_plain = rest.is_empty() || rest.starts_with(['=', '<', '>', '~', '!', '[', '(', ';']);
    (is_plain && name.starts_with(|first: char| first.is_ascii_alphanumeric())).then(|| normal(name))
}

/// `Foo_Bar.baz` and `foo-bar-baz` are the same project.
fn normal(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for c in name.chars() {
        let c = if matches!(c, '_' | '.') {
            '-'
        } else {
            c.to_ascii_lowercase()
        };
        if !(c == '-' && normal.ends_with('-')) {
            normal.push(c);
        }
    }
    normal
}

/// Checks a requirement against RequirementsPolicy: `allow`, `deny`, or a file with one allowed requirement per line, where
/// a bare name allows every version.
///
/// # Errors
/// The text for the client.
pub fn check_policy(policy: &str, specifier: &str) -> Result<(), String> {
    let denied =
        || format!("ERR the requirement '{specifier}' is not allowed on this server (RequirementsPolicy)");
    match policy {
        "allow" => Ok(()),
        "deny" => Err(denied()),
        file => {
            let list = fs::read_to_string(file).map_err(|error| {
                format!("ERR the allow-list {file} (RequirementsPolicy) cannot be read: {error}")
            })?;
            if is_listed(&list, specifier) {
                Ok(())
            } else {
                Err(denied())
            }
        }
    }
}

/// A wheel as the requirement that asks for it: `Foo_Bar-1.0-py3-none-any.whl` is `Foo_Bar==1.0`.
///
/// # Errors
/// The text for the client: it is no wheel.
pub fn of_wheel(file_name: &str) -> Result<String, String> {
    let mut parts = file_name.strip_suffix(".whl").unwrap_or_default().split('-');
    let known = |part: Option<&str>| part.filter(|part| !part.is_empty()).map(str::to_owned);
    match (known(parts.next()), known(parts.next()), parts.count()) {
        (Some(name), Some(version), 3 | 4) => Ok(format!("{name}=={version}")),
        _ => Err(format!("ERR '{file_name}' is not the name of a wheel")),
    }
}

fn is_listed(list: &str, specifier: &str) -> bool {
    let project = project(specifier);
    let exact = exact(specifier);
    list.lines()
        .map(|line| line.split(" #").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .any(|line| {
            line == specifier
                || exact.is_some() && exact == self::exact(line)
                || project.as_ref().is_some_and(|project| *project == normal(line))
        })
}

/// The project and the version of `name==version`.
fn exact(specifier: &str) -> Option<(String, &str)> {
    let (name, version) = specifier.split_once("==")?;
    Some((normal(name.trim()), version.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    /// What is handed to pip is one word for it, and no option of it.
    #[test]
    fn fuzz_specifiers() {
        let seeds = [
            "redis==5.0.1",
            "Flask[async]>=2,<3",
            "git+https://github.com/RedisGears/redisgears-py.git",
            "./wheels/demo-1.0-py3-none-any.whl",
            "tomli>=1; python_version < \"3.11\"",
            "demo @ file:///opt/demo.whl",
        ];
        fuzz(
            "specifier",
            &seeds.map(|seed| seed.as_bytes().to_vec()),
            |input| {
                let text = String::from_utf8_lossy(input);
                let _ = is_shipped(&text);
                if let Ok(requirement) = of_wheel(&text) {
                    assert!(requirement.contains("=="), "{requirement}");
                }
                let _ = is_listed("# ours\nFoo_Bar\nredis==5\n", &text);
                // A list that somebody wrote in a hurry.
                let _ = is_listed(&text, "redis==5");
                match check(&text) {
                    Ok(()) => {
                        assert!(
                            !text.starts_with('-') && !text.contains(['\n', '\r', '\0']),
                            "{text:?}"
                        );
                        assert!(text.len() <= MAX_LENGTH);
                        format!("{:?}", project(&text))
                            .chars()
                            .filter(|c| !c.is_alphanumeric())
                            .collect()
                    }
                    Err(error) => error.rsplit("': ").next().unwrap_or_default().to_owned(),
                }
            },
        );
    }

    #[test]
    fn requirements_of_users_pass() {
        for good in [
            "redis",
            "redis==5.0.1",
            "Flask[async]>=2,<3",
            "git+https://github.com/RedisGears/redisgears-py.git",
            "./wheels/demo-1.0-py3-none-any.whl",
            "/opt/demo.whl",
            "tomli>=1; python_version < \"3.11\"",
            "demo @ file:///opt/demo.whl",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn the_client_needs_no_installation() {
        assert!(is_shipped("git+https://github.com/RedisGears/redisgears-py.git"));
        assert!(!is_shipped(
            "git+https://github.com/RedisGears/redisgears-py.git@v1"
        ));
        assert!(!is_shipped("gearsclient"));
    }

    #[test]
    fn options_and_shell_text_do_not() {
        for bad in [
            "",
            "--index-url=http://x",
            "-r file",
            " redis",
            "a\nb",
            "redis'; touch x",
            "redis two",
            "$(id)",
            "`id`",
            "/tmp/x y",
            "https://host/x.whl|sh",
            "redis[a",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check(&"a".repeat(1001)).is_err());
    }

    #[test]
    fn a_wheel_tells_what_it_is() {
        assert_eq!(
            of_wheel("Foo_Bar-1.0-py3-none-any.whl"),
            Ok("Foo_Bar==1.0".into())
        );
        assert_eq!(
            of_wheel("foo-2-7-cp311-cp311-linux_x86_64.whl"),
            Ok("foo==2".into())
        );
        for bad in [
            "",
            "x.whl",
            "foo-1.0.tar.gz",
            "-1-py3-none-any.whl",
            "a-b-c-d-e-f-g.whl",
        ] {
            assert!(of_wheel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_name_allows_every_version() {
        let list = "# ours\nFoo_Bar   # any\nredis==5\n";
        assert!(is_listed(list, "foo-bar>=1"));
        assert!(is_listed(list, "foo.bar[x]"));
        assert!(is_listed(list, "redis==5"));
        assert!(is_listed(list, "Redis == 5"));
        assert!(!is_listed(list, "redis==6"));
        assert!(!is_listed(list, "foo-bar-baz"));
        assert!(!is_listed(list, "foo-bar @ https://elsewhere/foo.whl"));
    }
}
