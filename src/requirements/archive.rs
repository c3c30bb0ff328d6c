//! A requirement with its files as bytes: RG.PYEXPORTREQ, RG.PYIMPORTREQ, files and replicas. Contract:
//! docs/contract/commands.md 1.18.
//!
//! `PINREQ`, the format's version, the name, the platform, the number of files, then name and content of each, and last a
//! digest of all that. Numbers have 8 bytes, little-endian; texts and contents have their length in front.

use sha2::{Digest as _, Sha256};

use super::Files;
use crate::{engine::requirement::Digest, error::Error};

const MAGIC: &[u8] = b"PINREQ";
const VERSION: u64 = 1;
const DIGEST: usize = 32;

/// What an archive says about its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub platform: String,
    /// The names of its files.
    pub wheels: Vec<String>,
    pub digest: Digest,
}

pub fn encode(files: &Files) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    let mut put = |part: &[u8]| {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part);
    };
    put(files.name.as_bytes());
    put(files.platform.as_bytes());
    bytes.extend((files.wheels.len() as u64).to_le_bytes());
    for (name, content) in &files.wheels {
        for part in [name.as_bytes(), content] {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        }
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

/// Whether bytes were meant to be an archive.
pub fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// What an archive says of itself, in no time: its digest is not checked.
///
/// # Errors
/// Which part of the bytes is wrong.
pub fn header(bytes: &[u8]) -> Result<Header, Error> {
    parse(bytes).map(|(header, _)| header)
}

/// # Errors
/// Which part of the bytes is wrong.
pub fn decode(bytes: &[u8]) -> Result<Files, Error> {
    let (header, contents) = parse(bytes)?;
    let (content, digest) = bytes.split_at(bytes.len() - DIGEST);
    if Sha256::digest(content).as_slice() != digest {
        return Err(Error::BadArchive("wheel file data"));
    }
    let contents = contents.into_iter().map(<[u8]>::to_vec);
    Ok(Files {
        name: header.name,
        platform: header.platform,
        wheels: header.wheels.into_iter().zip(contents).collect(),
    })
}

/// The parts of an archive whose digest is not checked, and the contents of its files.
fn parse(bytes: &[u8]) -> Result<(Header, Vec<&[u8]>), Error> {
    let bad = Error::BadArchive;
    let rest = bytes.strip_prefix(MAGIC).ok_or(bad("requirement name"))?;
    let mut rest = Rest(rest);
    let version = rest.number().filter(|&version| version > 0);
    let version = version.ok_or(bad("requirement name"))?;
    if version > VERSION {
        return Err(Error::ArchiveTooNew);
    }
    let name = rest.text().ok_or(bad("requirement name"))?;
    let platform = rest.text().ok_or(bad("requirement os"))?;
    let amount = rest.number().filter(|&amount| amount > 0);
    let amount = amount.ok_or(bad("requirement wheels amount"))?;
    let (mut wheels, mut contents) = (Vec::new(), Vec::new());
    for _ in 0..amount {
        let wheel = rest.text().filter(|wheel| is_file_name(wheel));
        wheels.push(wheel.ok_or(bad("wheel file name"))?);
        contents.push(rest.part().ok_or(bad("wheel file data"))?);
    }
    let header = Header {
        name,
        platform,
        wheels,
        digest: rest.0.try_into().map_err(|_| bad("wheel file data"))?,
    };
    Ok((header, contents))
}

/// What it names lies in the folder of its requirement.
fn is_file_name(wheel: &str) -> bool {
    !(wheel.is_empty() || wheel.starts_with('.') || wheel.contains('/') || wheel.contains(char::is_control))
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn part(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (part, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(part)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.part()?.to_vec()).ok()
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)] // a test may panic
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    fn files() -> Files {
        Files {
            name: "demo==1".into(),
            platform: "linux-x86_64".into(),
            wheels: vec![
                ("a.whl".into(), vec![0; 100]),
                ("b.whl".into(), b"content".to_vec()),
            ],
        }
    }

    #[test]
    fn an_archive_reads_back() {
        assert_eq!(decode(&encode(&files())), Ok(files()));
    }

    #[test]
    fn a_header_tells_what_the_archive_holds() {
        let good = encode(&files());
        let header = header(&good);
        assert!(header.is_ok_and(|header| {
            header.wheels == ["a.whl", "b.whl"] && header.digest[..] == good[good.len() - DIGEST..]
        }));
    }

    #[test]
    fn files_stay_in_their_folder() {
        for name in [
            "", ".", "..", "../a.whl", "a/b.whl", "/a.whl", "a\0.whl", "a\n.whl",
        ] {
            let mut files = files();
            files.wheels[0].0 = name.into();
            assert_eq!(decode(&encode(&files)), Err(Error::BadArchive("wheel file name")));
        }
        let mut none = files();
        none.wheels.clear();
        assert_eq!(
            decode(&encode(&none)),
            Err(Error::BadArchive("requirement wheels amount"))
        );
    }

    /// Damage that its digest does not show is an error or another archive, whose files stay in its folder.
    #[test]
    fn fuzz_archives() {
        let good = encode(&files());
        fuzz("archive", &[good[..good.len() - DIGEST].to_vec()], |input| {
            let sealed = [input, &Sha256::digest(input)].concat();
            let (decoded, header) = (decode(&sealed), header(&sealed));
            // A digest of its own, which is hardly ever right.
            assert!(decode(input).is_err());
            match decoded {
                Ok(files) => {
                    let header = header.expect("what can be read has a header");
                    assert!(files.wheels.iter().all(|(name, _)| is_file_name(name)));
                    assert_eq!((&header.name, &header.platform), (&files.name, &files.platform));
                    assert_eq!(encode(&files), sealed);
                    format!("{:?}", header.wheels)
                }
                Err(error) => error.to_string(),
            }
        });
    }

    #[test]
    fn damage_is_told_by_its_place() {
        let good = encode(&files());
        assert_eq!(decode(b""), Err(Error::BadArchive("requirement name")));
        assert_eq!(decode(&good[..20]), Err(Error::BadArchive("requirement name")));
        assert_eq!(decode(&good[..32]), Err(Error::BadArchive("requirement os")));
        assert_eq!(
            decode(&good[..52]),
            Err(Error::BadArchive("requirement wheels amount"))
        );
        assert_eq!(decode(&good[..60]), Err(Error::BadArchive("wheel file name")));
        assert_eq!(decode(&good[..100]), Err(Error::BadArchive("wheel file data")));
        for place in 0..good.len() {
            let mut damaged = good.clone();
            damaged[place] ^= 0x55;
            assert!(decode(&damaged).is_err(), "byte {place}");
            assert!(decode(&good[..place]).is_err(), "length {place}");
        }
        let mut older = good.clone();
        older[MAGIC.len()] = 0;
        assert_eq!(decode(&older), Err(Error::BadArchive("requirement name")));
        let mut newer = good.clone();
        newer[MAGIC.len()] = 2;
        assert_eq!(decode(&newer), Err(Error::ArchiveTooNew));
    }
}
