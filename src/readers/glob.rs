//! The glob rule of the KEYS command, for batch readers (docs/contract/readers-and-events.md 1.6). Bytewise, never
//! exponential.

/// True if `text` as a whole matches `pattern`: `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, `\x`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut pos) = (0, 0);
    // Where to go on if what follows the last star does not match here.
    let mut retry: Option<(usize, usize)> = None;
    while pos < text.len() {
        if pattern.get(at) == Some(&b'*') {
            retry = Some((at + 1, pos));
            at += 1;
            continue;
        }
        if let Some(next) = one(pattern, at, text[pos]) {
            at = next;
            pos += 1;
        } else if let Some((after_star, taken)) = retry {
            retry = Some((after_star, taken + 1));
            at = after_star;
            pos = taken + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// Matches one byte against the element at `at`; the place of the next element if it fits.
fn one(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => {
            let (found, next) = class(pattern, at + 1, byte);
            found.then_some(next)
        }
        b'\\' if at + 1 < pattern.len() => (pattern[at + 1] == byte).then_some(at + 2),
        plain => (plain == byte).then_some(at + 1),
    }
}

/// Matches one byte against the class whose content begins at `at`. An unclosed class ends with the pattern.
fn class(pattern: &[u8], mut at: usize, byte: u8) -> (bool, usize) {
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut found = false;
    while at < pattern.len() {
        match pattern[at] {
            b'\\' if at + 1 < pattern.len() => {
                found |= pattern[at + 1] == byte;
                at += 2;
            }
            b']' => return (found != negated, at + 1),
            first if pattern.get(at + 1) == Some(&b'-') && at + 2 < pattern.len() => {
                let last = pattern[at + 2];
                found |= (first.min(last)..=first.max(last)).contains(&byte);
                at += 3;
            }
            plain => {
                found |= plain == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::{class, matches};
    use crate::fuzz::fuzz;

    /// The same rule, written as it is told: a star is nothing, or one byte and a star.
    fn plainly(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], _) => text.is_empty(),
            ([b'*', rest @ ..], _) => plainly(rest, text) || !text.is_empty() && plainly(pattern, &text[1..]),
            (_, []) => false,
            ([b'?', rest @ ..], [_, more @ ..]) => plainly(rest, more),
            ([b'[', ..], [byte, more @ ..]) => {
                let (found, next) = class(pattern, 1, *byte);
                found && plainly(&pattern[next..], more)
            }
            ([b'\\', escaped, rest @ ..], [byte, more @ ..]) => escaped == byte && plainly(rest, more),
            ([plain, rest @ ..], [byte, more @ ..]) => plain == byte && plainly(rest, more),
        }
    }

    #[test]
    fn fuzz_globs() {
        let seeds = [
            &b"h[^e-k]*l\\?o\0hallo?o"[..],
            b"*a*b*\0xaxbx",
            b"[a-\0-",
            b"\\\0\\",
        ];
        fuzz("glob", &seeds.map(<[u8]>::to_vec), |input| {
            let input = &input[..input.len().min(200)];
            let (pattern, text) = match input.iter().position(|&byte| byte == 0) {
                Some(place) => (&input[..place], &input[place + 1..]),
                None => (input, input),
            };
            let found = matches(pattern, text);
            // The plain one takes for ever where there are many stars.
            if pattern.split(|&byte| byte == b'*').count() <= 4 && text.len() <= 40 {
                assert_eq!(found, plainly(pattern, text), "{pattern:?} {text:?}");
            }
            format!(
                "{found} {}",
                String::from_utf8_lossy(pattern)
                    .chars()
                    .filter(|c| "*?[]^-\\".contains(*c))
                    .take(6)
                    .collect::<String>()
            )
        });
    }

    #[test]
    fn follows_the_keys_command() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("h?llo", "hello", true),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("[\\]]", "]", true),
            ("[abc", "c", true),
            ("a*b*c", "a--b--b-c", true),
            ("a*b*c", "a--b--b-", false),
            ("", "", true),
            ("", "a", false),
            ("a**", "a", true),
            ("Ab", "ab", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn many_stars_take_no_long_time() {
        let pattern = "*a".repeat(40);
        assert!(!matches(pattern.as_bytes(), "a".repeat(39).as_bytes()));
        assert!(!matches(
            format!("{pattern}b").as_bytes(),
            "a".repeat(5000).as_bytes()
        ));
    }
}
