//! The StreamReader's side of a registration: arguments, start and stop, figures, pause.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::mutex::Mutex;

use super::{Group, Options, RegistrationStreams, StreamWatch, Watch};
use crate::{
    engine::{
        prefix::Pattern,
        registration::{Peers, Registration, Trigger},
        whole_ms,
    },
    error::Error,
    readers::image::Image,
    server::{events::Class, lock::Lock, reply::Reply},
};

/// The trigger of one StreamReader registration.
pub(super) struct StreamTrigger {
    streams: Arc<StreamWatch>,
    pattern: Pattern,
    options: Options,
    /// The place that it had, or has: kept if nobody else has it.
    place: AtomicUsize,
    state: Arc<Mutex<RegistrationStreams>>,
}

impl StreamTrigger {
    pub(super) fn new(streams: Arc<StreamWatch>, options: Options, place: Option<usize>) -> Self {
        Self {
            streams,
            pattern: Pattern::new(options.prefix.as_bytes()),
            options,
            place: AtomicUsize::new(place.unwrap_or(0)),
            state: Arc::default(),
        }
    }

    fn watch(&self, lock: Lock<'_>, registration: &Registration) -> Option<Arc<Watch>> {
        let watched = self.streams.watched.read(lock);
        let found = watched
            .list
            .iter()
            .find(|watch| watch.registration.id == registration.id);
        found.cloned()
    }
}

impl Trigger for StreamTrigger {
    fn reader(&self) -> &'static str {
        "StreamReader"
    }

    fn arguments(&self) -> Vec<(&'static str, Reply)> {
        let options = &self.options;
        let number = |number: u64| Reply::Int(i64::try_from(number).unwrap_or(i64::MAX));
        vec![
            ("batchSize", number(options.batch)),
            ("durationMS", number(options.duration_ms)),
            ("stream", Reply::bulk(&options.prefix)),
            ("trimStream", Reply::Int(i64::from(options.trim))),
            ("onFailedPolicy", Reply::bulk(options.policy.name())),
            ("retryInterval", number(options.retry_s)),
        ]
    }

    fn image(&self) -> Vec<u8> {
        let image = Image::Stream {
            options: self.options.clone(),
            place: self.place.load(Ordering::Relaxed),
        };
        image.to_bytes()
    }

    fn doubts(&self) -> Vec<String> {
        crate::engine::doubts::of_prefix("prefix", &self.options.prefix)
            .into_iter()
            .collect()
    }

    fn check(&self, _lock: Lock<'_>, _peers: Peers<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let streams = &self.streams;
        let mut watched = streams.watched.write(lock);
        // The lowest place that nobody has on the same streams: an upgraded registration goes on where the old one was.
        let taken = |place: usize| {
            watched
                .list
                .iter()
                .any(|other| other.place == place && other.pattern.overlaps(&self.pattern))
        };
        let places = watched.list.len();
        let known = self.place.load(Ordering::Relaxed);
        let free = || (0..places).find(|&place| !taken(place)).unwrap_or(places);
        let place = if taken(known) { free() } else { known };
        self.place.store(place, Ordering::Relaxed);
        let watch = Arc::new(Watch {
            registration: Arc::clone(registration),
            pattern: self.pattern.clone(),
            options: self.options.clone(),
            group: Group::new(place),
            place,
            shared: Arc::clone(&self.state),
        });
        Arc::make_mut(&mut watched.list).push(Arc::clone(&watch));
        if !watched.subscribed {
            watched.subscribed = true;
            (streams.subscribe)(lock, Class::Stream);
        }
        drop(watched);
        self.state.lock().come_back();
        if streams.engine.is_serving() {
            streams.scan(&watch);
        }
        Ok(())
    }

    fn stop(&self, lock: Lock<'_>, registration: &Registration) {
        let mut watched = self.streams.watched.write(lock);
        Arc::make_mut(&mut watched.list).retain(|watch| watch.registration.id != registration.id);
        drop(watched);
        self.streams.engine.abort_pending(registration.id);
    }

    fn figures(&self, finished: u64) -> Vec<(&'static str, Reply)> {
        let state = self.state.lock();
        let average = if finished == 0 {
            0.0
        } else {
            state.total_lag.as_millis() as f64 / finished as f64
        };
        vec![
            ("lastEstimatedLagMS", Reply::Int(whole_ms(state.last_lag))),
            ("avgEstimatedLagMS", Reply::Double(average)),
        ]
    }

    fn clear_figures(&self) {
        let mut state = self.state.lock();
        (state.last_lag, state.total_lag) = (Duration::ZERO, Duration::ZERO);
    }

    fn status(&self) -> Option<&'static str> {
        Some(self.state.lock().status().name())
    }

    fn pause(&self, _lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let paused = self.state.lock().pause();
        if paused {
            self.streams.engine.abort_pending(registration.id);
        }
        Ok(())
    }

    fn unpause(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        if !self.state.lock().unpause() {
            return Ok(());
        }
        if let Some(watch) = self.watch(lock, registration) {
            self.streams.scan(&watch);
        }
        Ok(())
    }
}
