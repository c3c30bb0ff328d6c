//! What threads wait with: parking_lot's mutex and condition, and parking. In model checks (`make test-model`) the same names stand for
//! ones whose order shuttle chooses, so that it is the real queue, the real link and the real exchange that are checked.
//!
//! Used by those who wait on a condition, and by [`crate::mutex`]; knows nobody.

#[cfg(not(all(test, feature = "model")))]
mod real {
    pub use std::thread::{Thread, ThreadId, current, park};

    pub use parking_lot::{Condvar, Mutex, MutexGuard, RawMutex};
}

#[cfg(not(all(test, feature = "model")))]
pub use real::*;

#[cfg(all(test, feature = "model"))]
pub use model::*;

/// All threads of a model run on one of the operating system, which changes between them at each [`turn`](model::turn). So plain flags are
/// enough, and what is not to be interrupted just has no turn in it.
#[cfg(all(test, feature = "model"))]
mod model {
    use std::{
        collections::VecDeque,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::{Duration, Instant},
    };

    use parking_lot::lock_api;
    pub use shuttle::thread::ThreadId;
    use shuttle::{
        Config, MaxSteps, Runner,
        rand::Rng,
        scheduler::{PctScheduler, RandomScheduler},
    };

    pub type Mutex<T> = lock_api::Mutex<RawMutex, T>;
    pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, RawMutex, T>;

    /// Runs a model under so many orders that chance chooses, and under as many that change threads seldom.
    pub fn check(orders: usize, model: impl Fn() + Send + Sync + Copy + 'static) {
        let config = || {
            let mut config = Config::new();
            config.stack_size = 1 << 18;
            // Who waits for what never comes ends here.
            config.max_steps = MaxSteps::FailAfter(300_000);
            config
        };
        Runner::new(RandomScheduler::new(orders), config()).run(model);
        Runner::new(PctScheduler::new(3, orders), config()).run(model);
    }

    /// Another thread may go on here.
    pub fn turn() {
        if !std::thread::panicking() {
            shuttle::thread::yield_now();
        }
    }

    /// True now and then.
    pub fn chance() -> bool {
        shuttle::rand::thread_rng().gen_range(0..4) == 0
    }

    shuttle::thread_local! {
        static TOKEN: Arc<AtomicBool> = Arc::new(AtomicBool::new(false));
    }

    /// A thread that can be woken. Shuttle's own ones wake by themselves, so that nobody would miss who forgets to wake them.
    #[derive(Clone)]
    pub struct Thread(ThreadId, Arc<AtomicBool>);

    impl Thread {
        pub fn id(&self) -> ThreadId {
            self.0
        }

        pub fn unpark(&self) {
            self.1.store(true, Ordering::Release);
            turn();
        }
    }

    pub fn current() -> Thread {
        Thread(shuttle::thread::current().id(), TOKEN.with(Arc::clone))
    }

    pub fn park() {
        let token = current().1;
        while !token.swap(false, Ordering::AcqRel) {
            turn();
        }
    }

    pub struct RawMutex(AtomicBool);

    // SAFETY: whoever has set the flag has the mutex, until it is taken back.
    unsafe impl lock_api::RawMutex for RawMutex {
        // What the trait asks for: a value to begin with.
        #[allow(clippy::declare_interior_mutable_const)]
        const INIT: Self = Self(AtomicBool::new(false));

        type GuardMarker = lock_api::GuardNoSend;

        fn lock(&self) {
            while !self.try_lock() {}
        }

        fn try_lock(&self) -> bool {
            turn();
            !self.0.swap(true, Ordering::AcqRel)
        }

        unsafe fn unlock(&self) {
            self.0.store(false, Ordering::Release);
            turn();
        }
    }

    /// Those that wait, in their order; each has its own flag, which says that it was told.
    #[derive(Default)]
    pub struct Condvar(parking_lot::Mutex<VecDeque<Arc<AtomicBool>>>);

    pub struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl Condvar {
        pub fn new() -> Self {
            Self::default()
        }

        /// Time passes as chance has it.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) -> WaitTimeoutResult {
            self.wait_while_untold(guard, true)
        }

        pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _end: Instant) -> WaitTimeoutResult {
            self.wait_while_untold(guard, true)
        }

        fn wait_while_untold<T>(&self, guard: &mut MutexGuard<'_, T>, ends: bool) -> WaitTimeoutResult {
            let told = Arc::new(AtomicBool::new(false));
            self.0.lock().push_back(Arc::clone(&told));
            let mut timed_out = false;
            MutexGuard::unlocked(guard, || {
                while !told.load(Ordering::Acquire) && !timed_out {
                    turn();
                    timed_out = ends && chance();
                }
            });
            self.0.lock().retain(|waiting| !Arc::ptr_eq(waiting, &told));
            WaitTimeoutResult(!told.load(Ordering::Acquire))
        }

        pub fn notify_one(&self) -> bool {
            let first = self.0.lock().pop_front();
            if let Some(told) = &first {
                told.store(true, Ordering::Release);
            }
            turn();
            first.is_some()
        }

        pub fn notify_all(&self) -> usize {
            let all = std::mem::take(&mut *self.0.lock());
            for told in &all {
                told.store(true, Ordering::Release);
            }
            turn();
            all.len()
        }
    }
}
