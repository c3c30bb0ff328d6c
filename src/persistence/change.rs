//! One change of what is registered, as bytes: in RDB and AOF files and on the way to replicas.
//!
//! `PINION`, the format's version (one byte), a digest of the rest, and the change as MessagePack with named fields. Fields
//! may be added with a default, never taken away or changed: files of older versions hold them. The digest keeps damaged
//! bytes away from what would run them.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use crate::{
    engine::{
        plan,
        registration::{Images, Limits, Mode, Registration},
        session::Session,
    },
    server::rights::Owner,
};

const MAGIC: &[u8] = b"PINION";
const VERSION: u8 = 1;
const DIGEST: usize = 32;

/// What happens at once: a session takes the place of another one, and registrations come into force.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationChange {
    /// The session that ends.
    #[serde(default)]
    pub replaces: Option<String>,
    pub session: SavedSession,
    /// Requirements that are to be installed first, as [`crate::requirements::archive`] has them.
    #[serde(default)]
    pub requirements: Vec<ByteBuf>,
    pub registrations: Vec<SavedRegistration>,
    /// Registrations that have ended; other shards of the cluster may still have them.
    #[serde(default)]
    pub gone: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSession {
    pub id: String,
    #[serde(default)]
    pub description: Option<ByteBuf>,
    /// The names of its requirements.
    #[serde(default)]
    pub requirements: Vec<String>,
    /// They were installed for this very session.
    #[serde(default)]
    pub installed: bool,
    /// What tells it from others with the same id; empty in files of earlier versions.
    #[serde(default)]
    pub token: String,
    /// See [`Session::generation`]; 0 in files of earlier versions.
    #[serde(default)]
    pub generation: u64,
    /// Who sent its script; `None` in files of earlier versions.
    #[serde(default)]
    pub made_by: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRegistration {
    pub id: String,
    #[serde(default)]
    pub desc: Option<String>,
    pub mode: Mode,
    pub in_order: bool,
    /// What the readers make its trigger of.
    pub trigger: ByteBuf,
    pub steps: Vec<plan::Step>,
    pub images: Images,
    /// Who made it; nobody in files of earlier versions.
    #[serde(default)]
    pub owner: Owner,
    #[serde(default)]
    pub limits: Limits,
}

impl SavedSession {
    pub fn of(session: &Session) -> Self {
        let names = session
            .needs
            .requirements
            .iter()
            .map(|requirement| requirement.name.clone());
        Self {
            id: session.id.clone(),
            description: session.description.clone(),
            requirements: names.collect(),
            installed: session.needs.installed,
            token: session.token.clone(),
            generation: session.generation,
            made_by: session.owner.made_by.clone(),
        }
    }

    /// See [`Session::rank`].
    pub fn rank(&self) -> (u64, &str) {
        (self.generation, &self.token)
    }
}

impl SavedRegistration {
    pub fn of(registration: &Registration) -> Self {
        Self {
            id: registration.id.to_string(),
            desc: registration.desc.clone(),
            mode: registration.mode,
            in_order: registration.in_order,
            trigger: ByteBuf::from(registration.trigger.image()),
            steps: registration.plan.steps.clone(),
            images: registration.images.clone(),
            owner: registration.owner.clone(),
            limits: registration.limits,
        }
    }
}

impl RegistrationChange {
    pub fn encode(&self) -> Vec<u8> {
        // Plain data: nothing in it can fail to be written to memory.
        seal(&rmp_serde::to_vec_named(self).unwrap_or_default())
    }

    /// # Errors
    /// What is wrong with the bytes, for the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or("these are no registrations of Pinion")?;
        let (&version, rest) = rest.split_first().ok_or("it is cut off after its first bytes")?;
        if version > VERSION {
            return Err(format!(
                "could not load rdb created with higher RedisGears version! (format {version}, this Pinion reads up to {VERSION})"
            ));
        }
        let (digest, content) = rest
            .split_at_checked(DIGEST)
            .ok_or("it is cut off in its digest")?;
        if Sha256::digest(content).as_slice() != digest {
            return Err("it is damaged, its digest does not match".into());
        }
        rmp_serde::from_slice(content).map_err(|error| format!("it cannot be read: {error}"))
    }
}

/// What stands in front of a content, and the content.
fn seal(content: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    bytes.extend(Sha256::digest(content));
    bytes.extend(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{
            id::{Id, ShardId},
            plan::Plan,
        },
        fuzz::fuzz,
        readers::image::Image,
        requirements::{Files, archive},
    };

    fn change() -> RegistrationChange {
        RegistrationChange {
            replaces: Some("old".into()),
            session: SavedSession {
                id: "new".into(),
                description: None,
                requirements: vec!["demo".into()],
                installed: true,
                token: "token".into(),
                generation: 7,
                made_by: Some("alice".into()),
            },
            requirements: vec![ByteBuf::from(b"archive".to_vec())],
            registrations: vec![SavedRegistration {
                id: "0-1".into(),
                desc: Some("what it does".into()),
                mode: Mode::AsyncLocal,
                in_order: true,
                trigger: ByteBuf::from(vec![1, 2, 3]),
                steps: vec![plan::Step::Map(0), plan::Step::Limit { start: 1, length: 2 }],
                images: Images {
                    functions: vec![ByteBuf::from(vec![0xff; 50])],
                    on_registered: None,
                },
                owner: Owner {
                    made_by: Some("alice".into()),
                    acts_as: Some("app".into()),
                },
                limits: Limits {
                    timeout_ms: Some(7),
                    max_concurrent: Some(2),
                    max_memory: Some(1 << 20),
                },
            }],
            gone: vec!["0-0".into()],
        }
    }

    #[test]
    fn a_change_reads_back() {
        assert_eq!(RegistrationChange::decode(&change().encode()), Ok(change()));
    }

    #[test]
    fn damage_never_gets_through() {
        let good = change().encode();
        for place in 0..good.len() {
            let mut damaged = good.clone();
            damaged[place] ^= 0x55;
            assert!(RegistrationChange::decode(&damaged).is_err(), "byte {place}");
            assert!(
                RegistrationChange::decode(&good[..place]).is_err(),
                "length {place}"
            );
        }
    }

    /// A change of all that one can hold.
    fn whole_change() -> RegistrationChange {
        let mut change = change();
        change.requirements = vec![ByteBuf::from(archive::encode(&Files {
            name: "demo".into(),
            platform: "here".into(),
            wheels: vec![("demo.whl".into(), vec![1; 20])],
        }))];
        let images = [
            Image::Trigger {
                name: "t".into(),
                in_order: false,
            },
            Image::Hook {
                command: "get".into(),
                prefix: Some("p".into()),
                mode: Mode::Sync,
                in_order: true,
            },
        ];
        let first = change.registrations.remove(0);
        for (number, image) in images.iter().enumerate() {
            change.registrations.push(SavedRegistration {
                id: Id {
                    number: number as u64,
                    shard: ShardId::STANDALONE,
                }
                .to_string(),
                desc: first.desc.clone(),
                mode: Mode::Sync,
                in_order: false,
                trigger: ByteBuf::from(image.to_bytes()),
                steps: first.steps.clone(),
                images: first.images.clone(),
                owner: first.owner.clone(),
                limits: first.limits,
            });
        }
        change
    }

    /// All that is read of a change before a function of it is loaded.
    fn read(change: &RegistrationChange) {
        for saved in &change.registrations {
            let _ = Id::parse(saved.id.as_bytes());
            let _ = rmp_serde::from_slice::<Image>(&saved.trigger);
            let plan = Plan {
                steps: saved.steps.clone(),
                functions: Vec::new(),
            };
            let _ = plan.is_complete();
        }
        for archive in &change.requirements {
            let _ = archive::header(archive);
            let _ = archive::decode(archive);
        }
        assert_eq!(RegistrationChange::decode(&change.encode()).as_ref(), Ok(change));
    }

    /// Damage behind the digest is an error or another change.
    #[test]
    fn fuzz_changes() {
        let good = rmp_serde::to_vec_named(&whole_change()).unwrap_or_default();
        fuzz("change", &[good], |input| {
            let _ = RegistrationChange::decode(input);
            match RegistrationChange::decode(&seal(input)) {
                Ok(change) => {
                    read(&change);
                    format!(
                        "{:?}",
                        change
                            .registrations
                            .iter()
                            .map(|saved| &saved.steps)
                            .collect::<Vec<_>>()
                    )
                }
                Err(error) => error,
            }
        });
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut newer = change().encode();
        newer[MAGIC.len()] = VERSION + 1;
        let refused = RegistrationChange::decode(&newer).err().unwrap_or_default();
        assert!(refused.contains("higher RedisGears version"), "{refused}");
    }
}
