//! This shard's part of another one's run: the plan that was sent, or the registration that it names, with the records of this
//! shard. On the thread of the cluster, because functions are loaded. Contract: docs/contract/commands.md 8.3.

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::Cluster;
use crate::{
    engine::{
        Participation, Shape,
        id::{Id, ShardId},
        language::{Failure, Function},
        members::Members,
        plan::Plan,
        run_message::{Functions, Listing, RunMessage, SessionImage, Shards, SharedPlan},
        session::{Needs, Session},
        source::{Once, Source},
    },
    readers::source::SourceImage,
    server::{api, lock, rights::Owner},
};

impl Cluster {
    /// Makes this shard's part of another one's run.
    pub(super) fn take_part(&self, from: ShardId, id: Id, plan: SharedPlan) {
        let attempt = plan.attempt;
        let message = if let Err(reason) = self.agree(&plan.members) {
            RunMessage::NotYet { attempt, reason }
        } else {
            match self.part(&plan) {
                Ok(part) => {
                    self.engine.take_part(from, id, &plan, part);
                    RunMessage::Received { attempt }
                }
                Err(reason) => {
                    api::log_warning(&format!("cannot take part in execution {id}: {reason}"));
                    RunMessage::Refused(reason)
                }
            }
        };
        self.tell(from, id, message);
    }

    /// Whether this shard sees the same cluster.
    ///
    /// # Errors
    /// What is different.
    fn agree(&self, members: &Members) -> Result<(), Failure> {
        if !self.engine.is_serving() {
            return Err("it is no master, or loads its data".into());
        }
        let sees = || self.engine.members().is_some_and(|known| *known == *members);
        if sees() {
            return Ok(());
        }
        self.look();
        match self.engine.shape() {
            _ if sees() => Ok(()),
            Shape::Unknown(reason) => Err(reason.into()),
            Shape::Alone | Shape::Known(_) => Err("it sees other shards, or other slots of theirs".into()),
        }
    }

    fn part(&self, shared: &SharedPlan) -> Result<Participation, Failure> {
        let me = self.identity().shard;
        let mut listing = Listing::Unlisted;
        let mut owner = None;
        let (plan, session) = match &shared.functions {
            Functions::Registered(id) => {
                let known = self.engine.registry.registration(*id);
                let known = known.filter(|known| known.disabled.is_none());
                let registration = known.ok_or_else(|| format!("registration {id} is not in force there"))?;
                let found = (Arc::clone(&registration.plan), Arc::clone(&registration.session));
                owner = Some(registration);
                found
            }
            Functions::Sent {
                session,
                steps,
                images,
            } => {
                listing = session.listing;
                let session = self.session_like(session);
                let load = |image: &ByteBuf| self.load(image, &session);
                let plan = Plan {
                    steps: steps.clone(),
                    functions: images.iter().map(load).collect::<Result<_, _>>()?,
                };
                if !plan.is_complete() {
                    return Err("the plan names a function that it does not have".into());
                }
                (Arc::new(plan), session)
            }
        };
        let source: Box<dyn Source> = match &shared.source {
            None => Box::new(Once(None)),
            Some(image) => {
                let load = |image: &[u8]| self.load(image, &session);
                SourceImage::of_bytes(image)?.open(me, &load)?
            }
        };
        Ok(Participation {
            plan,
            session,
            source,
            owner,
            listing,
        })
    }

    /// The session that a run of another shard belongs to. Another one may have taken its place here before the plan came.
    fn session_like(&self, image: &SessionImage) -> Arc<Session> {
        let known = self.engine.registry.sessions(|sessions| {
            if image.token.is_empty() {
                sessions.live(&image.id)
            } else {
                sessions.with_token(&image.token)
            }
        });
        known.unwrap_or_else(|| {
            let needs = Needs {
                requirements: lock::with_lock(|lock| {
                    let known = |name: &String| self.engine.requirements.get(lock, name);
                    image.requirements.iter().filter_map(known).collect()
                }),
                installed: image.installed,
            };
            let session = Session::new(image.id.clone(), image.description.clone(), needs)
                .owned_by(Owner::of_user(image.made_by.clone()));
            Arc::new(session.known_as(image.token.clone(), image.generation))
        })
    }

    fn load(&self, image: &[u8], session: &Session) -> Result<Arc<dyn Function>, Failure> {
        let loaded = self.engine.language.load(image, session);
        loaded.map_err(|error| format!("Failed deserializing flat execution, {error}").into())
    }
}
