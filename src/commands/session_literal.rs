//! A session as a Python literal: PD of a registration, and the lists of sessions. Contract: docs/contract/commands.md 1.10 and
//! 1.14.

use std::fmt::Write as _;

use crate::engine::{requirement::Requirement, session::Session};

/// A replaced session stands in no list.
pub(super) fn link(dead: bool) -> &'static str {
    if dead { "None" } else { "primary" }
}

/// The session as a Python literal: clients evaluate it.
pub fn literal(session: &Session) -> String {
    let description = session
        .description
        .as_ref()
        .map_or_else(|| "None".to_owned(), |text| quoted_bytes(text));
    let registrations: Vec<String> = session
        .registrations()
        .iter()
        .map(|id| quoted(&id.to_string()))
        .collect();
    let requirements: Vec<String> = session
        .needs
        .requirements
        .iter()
        .map(|needed| dependency(needed))
        .collect();
    let dead = session.is_replaced();
    format!(
        "{{'sessionId':{id}, 'sessionName':{id}, 'sessionDescription':{description}, 'refCount': {count}, \
         'linkedTo': '{link}', 'dead': {dead}, 'isInstallationNeeded':{installed}, 'registrationsList':[{registrations}], \
         'depsList':[{requirements}]}}",
        id = quoted(&session.id),
        count = session.ref_count(),
        link = link(dead),
        dead = if dead { "True" } else { "False" },
        installed = i32::from(session.needs.installed),
        registrations = registrations.join(","),
        requirements = requirements.join(","),
    )
}

fn dependency(requirement: &Requirement) -> String {
    let wheels: Vec<String> = requirement.wheels.iter().map(|wheel| quoted(wheel)).collect();
    format!(
        "{{'name':{}, 'basePath':{}, 'wheels':[{}]}}",
        quoted(&requirement.name),
        quoted(&requirement.directory().to_string_lossy()),
        wheels.join(",")
    )
}

/// A string literal of Python.
fn quoted(text: &str) -> String {
    quoted_bytes(text.as_bytes())
}

/// The same of bytes; those that are not UTF-8 are written as Python's `surrogateescape` has them.
fn quoted_bytes(text: &[u8]) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for chunk in text.utf8_chunks() {
        quote(chunk.valid(), &mut quoted);
        for byte in chunk.invalid() {
            let _ = write!(quoted, "\\udc{byte:02x}");
        }
    }
    quoted.push('\'');
    quoted
}

fn quote(text: &str, quoted: &mut String) {
    for character in text.chars() {
        match character {
            '\'' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            plain => quoted.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::session::Needs;

    #[test]
    fn literals_keep_quotes_and_line_ends() {
        assert_eq!(quoted("it's a \\ \n\u{1}"), "'it\\'s a \\\\ \\n\\u0001'");
        assert_eq!(quoted_bytes(b"a\xff\xc3("), "'a\\udcff\\udcc3('");
    }

    #[test]
    fn a_session_has_the_documented_keys() {
        let session = Session::new("s".into(), None, Needs::default());
        assert_eq!(
            literal(&session),
            "{'sessionId':'s', 'sessionName':'s', 'sessionDescription':None, 'refCount': 0, 'linkedTo': 'primary', \
             'dead': False, 'isInstallationNeeded':0, 'registrationsList':[], 'depsList':[]}"
        );
    }
}
