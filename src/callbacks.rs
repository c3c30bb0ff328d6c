//! What the server calls besides commands: the filter, notifications, server events, messages of the bus, INFO. Each is one
//! line into the room that it is for; the frames that catch panics are in `server`.

use std::ffi::{c_char, c_int, c_void};

use crate::{
    module::Pinion,
    python,
    readers::time_events,
    report,
    server::{
        after, audience, bus, closing,
        events::{self, Class, ServerEvent},
        fields, filter, home, info,
        lock::Lock,
        persist, raw, room,
    },
};

pub unsafe extern "C" fn on_command_filter(passing: *mut raw::RedisModuleCommandFilterCtx) {
    let Some(pinion) = Pinion::get() else { return };
    // SAFETY: the server calls this with its own argument.
    unsafe { filter::run(passing, |passing| pinion.hooks.filter(&pinion.engine, passing)) };
}

/// Two functions, because the server calls a function for no event that this very function causes: a miss inside a
/// change must be seen, and the reverse.
macro_rules! notifications {
    ($($function:ident => $reader:ident;)*) => { $(
        unsafe extern "C" fn $function(
            ctx: *mut raw::RedisModuleCtx,
            class: c_int,
            event: *const c_char,
            key: *mut raw::RedisModuleString,
        ) -> c_int {
            let Some(pinion) = Pinion::get() else { return 0 };
            // SAFETY: the server calls this with its own arguments.
            unsafe {
                events::run_notification(
                    ctx,
                    class,
                    event,
                    key,
                    |lock, key| pinion.$reader.concerns(lock, key),
                    |event| pinion.$reader.notify(event),
                )
            }
        }
    )* };
}

notifications! {
    on_key_miss => keys;
    on_key_change => keys;
    on_stream_change => streams;
    on_loaded_change => loads;
    on_captured_change => behind;
}

/// Asks the server for the notifications that somebody needs. Some servers need care from the first one on that comes of a COPY or MOVE.
pub fn subscribe(lock: Lock<'_>, class: Class) {
    let is_of_copies = matches!(class, Class::Changes(_) | Class::Loaded | Class::Captured(_));
    if let Some(pinion) = Pinion::get().filter(|_| is_of_copies && home::is_needed()) {
        pinion.hooks.keep_clients_home(lock);
    }
    match class {
        Class::KeyMiss => events::subscribe(lock, class, on_key_miss),
        Class::Changes(_) => events::subscribe(lock, class, on_key_change),
        Class::Stream => events::subscribe(lock, class, on_stream_change),
        Class::Loaded => events::subscribe(lock, class, on_loaded_change),
        Class::Captured(_) => events::subscribe(lock, class, on_captured_change),
    }
}

pub unsafe extern "C" fn on_server_event(
    _ctx: *mut raw::RedisModuleCtx,
    event: raw::RedisModuleEvent,
    sub_event: u64,
    data: *mut c_void,
) {
    if !events::is_told(&event, sub_event) {
        return;
    }
    let Some(pinion) = Pinion::get() else { return };
    // SAFETY: the server calls this with its own arguments.
    unsafe {
        events::run_server_event(event, sub_event, data, |lock, event| {
            if event == ServerEvent::BeforeSleep {
                after::before_sleep(lock);
                audience::next_turn(lock);
                room::next_turn(lock);
                pinion.hooks.before_sleep(lock);
                pinion.loads.pump(lock);
                pinion.behind.pump(lock);
                pinion.engine.about_to_sleep();
                closing::lock_comes_free();
                return;
            }
            match event {
                ServerEvent::Closing => {
                    pinion.behind.closing(lock);
                    return closing::close();
                }
                ServerEvent::PortsChanged => return python::note_places(lock, pinion.engine.features),
                ServerEvent::AppendOnlyChanged => return pinion.persistence.check_replay(lock),
                ServerEvent::Flushed(db) => {
                    pinion.behind.flushed(lock, db);
                    return pinion.loads.flushed(lock, db);
                }
                ServerEvent::Swapped(first, second) => {
                    pinion.behind.swapped(lock, first, second);
                    pinion.loads.flushed(lock, Some(first));
                    return pinion.loads.flushed(lock, Some(second));
                }
                _ => {}
            }
            let begins = pinion.engine.update_serving(lock);
            let persistence = &pinion.persistence;
            match event {
                ServerEvent::LoadingStarted => {
                    time_events::loading_started(lock);
                    pinion.behind.loading_started(lock);
                    persistence.loading_started(lock);
                }
                ServerEvent::LoadingFailed => {
                    persist::ended(lock);
                    pinion.behind.loading_started(lock);
                    persistence.loading_failed(lock);
                }
                ServerEvent::LoadingEnded => {
                    fields::forget(lock);
                    persist::ended(lock);
                    pinion.keys.loading_ended(lock);
                    pinion.behind.loading_ended(lock);
                    persistence.loading_ended(lock);
                }
                ServerEvent::WritingStarted(writing) => return persist::writing_started(lock, writing),
                ServerEvent::WritingEnded => return persist::ended(lock),
                ServerEvent::RoleChanged => {
                    pinion
                        .cluster
                        .forget_shape("this server has just got another role");
                    pinion.behind.role_changed(lock);
                }
                ServerEvent::BeforeSleep
                | ServerEvent::PortsChanged
                | ServerEvent::AppendOnlyChanged
                | ServerEvent::Closing
                | ServerEvent::Flushed(_)
                | ServerEvent::Swapped(..) => {}
            }
            if begins {
                // Not in the middle of REPLICAOF: it would count what is written as its own, and replicas would get it.
                after::after_command(lock, |_| pinion.engine.prepare_again());
                pinion.streams.begin_again(lock);
            }
        });
    }
}

pub unsafe extern "C" fn on_bus_message(
    _ctx: *mut raw::RedisModuleCtx,
    sender: *const c_char,
    kind: u8,
    message: *const u8,
    length: u32,
) {
    let Some(pinion) = Pinion::get() else { return };
    // SAFETY: the server calls this with its own arguments.
    unsafe {
        bus::run(sender, message, length, |lock, sender, message| {
            pinion.cluster.bus_message(lock, kind, sender, message);
        });
    }
}

pub unsafe extern "C" fn on_info(request: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    let Some(pinion) = Pinion::get() else { return };
    if for_crash_report != 0 {
        // The thread that crashed may hold one of our mutexes.
        return;
    }
    // SAFETY: the server calls this with its own argument.
    unsafe {
        info::run(request, |info| {
            report::fill(
                info,
                &pinion.engine,
                &pinion.cluster,
                &pinion.loads,
                &pinion.behind,
            );
        });
    };
}
