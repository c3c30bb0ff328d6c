//! Small containers as the server keeps them: a listpack, which is one piece of bytes with an end. The format is the one of RDB files.
//!
//! Its parts are copied as the module keeps them ([`super::snapshot`]), without an object of the server for each. Whatever does not
//! look as expected is left to the server's own functions.

/// Longer ones are left to the server: so many bytes are no small container any more.
const LONGEST: usize = 1 << 17;
/// Parts from that length on: servers do not agree about what stands behind them at the very edge.
const LONGEST_PART: usize = 16_000;
const HEAD: usize = 6;
const END: u8 = 0xff;

/// The bytes of a listpack, from where it begins.
///
/// # Safety
/// A listpack lies there, which nobody changes for `'a`.
pub(super) unsafe fn at<'a>(start: *const u8) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise it has a head, whose first number is its length.
    unsafe {
        let len = u32::from_le(start.cast::<u32>().read_unaligned()) as usize;
        (HEAD < len && len <= LONGEST).then(|| std::slice::from_raw_parts(start, len))
    }
}

/// Appends all parts to `out`, each behind its length. How many there are; `None` if the bytes do not look as expected, then `out` is
/// left with some of them.
pub(super) fn copy_parts(bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let mut rest = bytes.get(HEAD..)?;
    let mut number = 0;
    loop {
        let (&first, behind) = rest.split_first()?;
        let head;
        let len = match first {
            0..=0x7f => {
                put_number(out, i64::from(first));
                head = 1;
                0
            }
            0x80..=0xbf => {
                head = 1;
                usize::from(first & 0x3f)
            }
            0xc0..=0xdf => {
                let bits = i64::from(first & 0x1f) << 8 | i64::from(*behind.first()?);
                // Thirteen bits with a sign.
                put_number(out, if bits < 1 << 12 { bits } else { bits - (1 << 13) });
                head = 2;
                0
            }
            0xe0..=0xef => {
                head = 2;
                usize::from(first & 0x0f) << 8 | usize::from(*behind.first()?)
            }
            0xf0 => {
                head = 5;
                u32::from_le_bytes(*behind.first_chunk()?) as usize
            }
            0xf1 => {
                put_number(out, i64::from(i16::from_le_bytes(*behind.first_chunk()?)));
                head = 3;
                0
            }
            0xf2 => {
                let &[low, middle, high] = behind.first_chunk()?;
                // In the upper bytes first, for the sign.
                put_number(out, i64::from(i32::from_le_bytes([0, low, middle, high]) >> 8));
                head = 4;
                0
            }
            0xf3 => {
                put_number(out, i64::from(i32::from_le_bytes(*behind.first_chunk()?)));
                head = 5;
                0
            }
            0xf4 => {
                put_number(out, i64::from_le_bytes(*behind.first_chunk()?));
                head = 9;
                0
            }
            END => return behind.is_empty().then_some(number),
            _ => return None,
        };
        if len > LONGEST_PART {
            return None;
        }
        let part = rest.get(..head + len)?;
        if matches!(first, 0x80..=0xbf | 0xe0..=0xf0) {
            out.extend_from_slice(&(len as u32).to_le_bytes());
            out.extend_from_slice(&part[head..]);
        }
        number += 1;
        // Behind each part stands how long it is, for those who come from the end.
        rest = rest.get(part.len() + if part.len() <= 127 { 1 } else { 2 }..)?;
    }
}

/// A number as its text, behind the length of that.
fn put_number(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    let mut left = number.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if number < 0 {
        start -= 1;
        digits[start] = b'-';
    }
    out.extend_from_slice(&((digits.len() - start) as u32).to_le_bytes());
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
#[allow(clippy::expect_used)] // a test may panic
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    /// As the server makes it.
    fn packed(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut body = Vec::new();
        for part in parts {
            body.extend(part);
            if part.len() <= 127 {
                body.push(part.len() as u8);
            } else {
                body.extend([(part.len() >> 7) as u8, (part.len() & 127) as u8 | 128]);
            }
        }
        let len = (HEAD + body.len() + 1) as u32;
        let number = (parts.len() as u16).to_le_bytes();
        [&len.to_le_bytes(), &number[..], &body, &[END]].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        match text.len() {
            len @ ..64 => [&[0x80 | len as u8], text].concat(),
            len @ 64..4096 => [&[0xe0 | (len >> 8) as u8, len as u8], text].concat(),
            len => [&[0xf0][..], &(len as u32).to_le_bytes(), text].concat(),
        }
    }

    fn sample() -> (Vec<u8>, Vec<Vec<u8>>) {
        let long = vec![b'x'; 5000];
        let middle = vec![b'y'; 300];
        let numbers: [(&[u8], &[u8]); 12] = [
            (&[0], b"0"),
            (&[127], b"127"),
            (&[0xdf, 0xff], b"-1"),
            (&[0xcf, 0xff], b"4095"),
            (&[0xd0, 0], b"-4096"),
            (&[0xf1, 0, 0x80], b"-32768"),
            (&[0xf1, 0xff, 0x7f], b"32767"),
            (&[0xf2, 0, 0, 0x80], b"-8388608"),
            (&[0xf2, 0xff, 0xff, 0x7f], b"8388607"),
            (&[0xf3, 0, 0, 0, 0x80], b"-2147483648"),
            (&[0xf4, 0, 0, 0, 0, 0, 0, 0, 0x80], b"-9223372036854775808"),
            (
                &[0xf4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
                b"9223372036854775807",
            ),
        ];
        let texts: [&[u8]; 6] = [b"", b"name", &long, &[b'z'; 63], &middle, b"\xff\x00"];
        let mut parts: Vec<Vec<u8>> = numbers.iter().map(|(part, _)| part.to_vec()).collect();
        parts.extend(texts.iter().map(|part| text(part)));
        let mut expected: Vec<Vec<u8>> = numbers.iter().map(|(_, text)| text.to_vec()).collect();
        expected.extend(texts.iter().map(|part| part.to_vec()));
        (packed(&parts), expected)
    }

    #[test]
    fn parts_of_all_kinds_are_read() {
        let (bytes, expected) = sample();
        let mut out = Vec::new();
        assert_eq!(copy_parts(&bytes, &mut out), Some(expected.len()));
        let wanted: Vec<u8> = expected
            .iter()
            .flat_map(|part| [&(part.len() as u32).to_le_bytes()[..], part].concat())
            .collect();
        assert_eq!(out, wanted);
        // SAFETY: the bytes are one.
        assert_eq!(unsafe { at(bytes.as_ptr()) }, Some(&bytes[..]));
        assert_eq!(copy_parts(&packed(&[]), &mut out), Some(0));
    }

    #[test]
    fn what_looks_otherwise_is_left_alone() {
        let (bytes, _) = sample();
        for len in 0..bytes.len() {
            assert_eq!(copy_parts(&bytes[..len], &mut Vec::new()), None, "{len}");
        }
        for part in [
            &[0xf5][..],
            &[0xf0, 0xff, 0xff, 0xff, 0xff],
            &text(&[0; LONGEST_PART + 1]),
        ] {
            assert_eq!(copy_parts(&packed(&[part.to_vec()]), &mut Vec::new()), None);
        }
    }

    #[test]
    fn fuzz_listpacks() {
        fuzz(
            "listpack",
            &[sample().0, packed(&[text(b"a"), vec![7]])],
            |input| {
                let mut out = Vec::new();
                let number = copy_parts(input, &mut out);
                assert!(out.len() <= input.len() * 21);
                format!("{number:?}")
            },
        );
    }
}
