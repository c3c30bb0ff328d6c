//! This shard's part of another one's run: the plan that was sent, or the registration that it names, with the records of this
//! shard. On the thread of the cluster, because functions are loaded. Contract: `commands.md` 8.3.

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::Cluster;
use crate::{
    engine::{
        Participation,
        distributed_run::{Functions, RunMessage, Shards, SharedPlan},
        execution::Source,
        id::{Id, ShardId},
        language::Function,
        plan::Plan,
        session::{Needs, Session},
    },
    readers::{generator::Once, source::SourceImage},
    server::api,
};

impl Cluster {
    /// Makes this shard's part of another one's run.
    pub(super) fn take_part(&self, from: ShardId, id: Id, plan: SharedPlan) {
        let message = match self.part(&plan) {
            Ok(part) => {
                self.engine.take_part(from, id, &plan, part);
                RunMessage::Received
            }
            Err(reason) => {
                api::log_warning(&format!("cannot take part in execution {id}: {reason}"));
                RunMessage::Refused(reason)
            }
        };
        self.tell(from, id, message);
    }

    fn part(&self, shared: &SharedPlan) -> Result<Participation, String> {
        let me = self.identity().shard;
        if let Some(unknown) = shared
            .members
            .others(me)
            .find(|&shard| self.link(shard).is_none())
        {
            self.look();
            if self.link(unknown).is_none() {
                return Err(format!("shard {unknown} is not known there"));
            }
        }
        let (plan, session) = match &shared.functions {
            Functions::Registered(id) => {
                let known = self.engine.registry.registration(*id);
                let known = known.filter(|known| known.disabled.is_none());
                let registration = known.ok_or_else(|| format!("registration {id} is not in force there"))?;
                (Arc::clone(&registration.plan), Arc::clone(&registration.session))
            }
            Functions::Sent {
                session,
                steps,
                images,
            } => {
                let live = self
                    .engine
                    .registry
                    .sessions(|sessions| sessions.live(&session.id));
                let session = live.unwrap_or_else(|| {
                    let description = session.description.clone();
                    Arc::new(Session::new(session.id.clone(), description, Needs::default()))
                });
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
        })
    }

    fn load(&self, image: &[u8], session: &Session) -> Result<Arc<dyn Function>, String> {
        let loaded = self.engine.language.load(image, session);
        loaded.map_err(|error| format!("Failed deserializing flat execution, {error}"))
    }
}
