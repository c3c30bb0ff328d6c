//! The internal commands: messages of other shards, steps of what is registered, and what the filters put in front of
//! commands. Clients may not call them, unless their summary says otherwise. What they do is in the rooms that need them.

use crate::{
    error::Error,
    hooks::ProxyCommand,
    readers::time_events,
    server::{
        after,
        command::{Answer, Command},
        reply::Reply,
    },
};

commands! {
    hello_command {
        name: c"RG.HELLO",
        flags: c"readonly",
        categories: c"admin dangerous gears",
        syntax: "",
        summary: c"Internal: another shard of the cluster says who it is.",
        handler: |pinion, command| pinion.cluster.hello(command),
    }
    inner_message_command {
        name: c"RG.INNERMSGCOMMAND",
        flags: c"readonly deny-script",
        categories: c"admin dangerous gears",
        syntax: "",
        summary: c"Internal: a message of another shard of the cluster.",
        handler: |pinion, command| pinion.cluster.inner_message(command),
    }
    inner_read_command {
        name: c"RG.INNERREAD",
        flags: c"readonly getkeys-api",
        categories: c"read",
        syntax: "",
        summary: c"Internal: stands in front of a command that functions are linked to.",
        handler: |pinion, command| pinion.hooks.run_proxy(&pinion.engine, command, ProxyCommand::Read),
    }
    inner_read_later_command {
        name: c"RG.INNERREADLATER",
        flags: c"readonly may-replicate getkeys-api",
        categories: c"read",
        syntax: "",
        summary: c"Internal: stands in front of a command that functions are linked to, where clients are or may be paused.",
        handler: |pinion, command| pinion.hooks.run_proxy(&pinion.engine, command, ProxyCommand::ReadLater),
    }
    inner_register_command {
        name: c"RG.INNERREGISTER",
        flags: c"write",
        categories: c"write admin dangerous gears",
        syntax: "<blob>",
        summary: c"Internal: one step of what is registered, in files and on replicas.",
        handler: |pinion, command| pinion.persistence.inner_register(command),
    }
    inner_unregister_command {
        name: c"RG.INNERUNREGISTER",
        flags: c"write",
        categories: c"write admin dangerous gears",
        syntax: "<registration id> [ABORTPENDING]",
        summary: c"Removes a registered function, on this shard only.",
        handler: |pinion, command| pinion.persistence.inner_unregister(command),
    }
    inner_import_command {
        name: c"RG.PYIMPORTRETINTERNAL",
        flags: c"write",
        categories: c"write admin dangerous gears",
        syntax: "<blob>",
        summary: c"Internal: a requirement with its files, in files and on replicas.",
        handler: |pinion, command| pinion.persistence.inner_import(command),
    }
    inner_queue_command {
        name: c"RG.INNERQUEUE",
        flags: c"write",
        categories: c"write admin dangerous gears",
        syntax: "<blob>",
        summary: c"Internal: changes that are to be saved, in files and on replicas.",
        handler: |pinion, command| pinion.behind.inner_queue(command),
    }
    inner_after_command {
        name: c"RG.INNERAFTER",
        flags: c"write",
        categories: c"write admin dangerous gears",
        syntax: "",
        summary: c"Internal: runs what waits for the end of a command.",
        handler: |_, command| run_after(command),
    }
    inner_time_event_command {
        name: c"RG.INNERTIMEEVENT",
        flags: c"write",
        categories: c"write admin dangerous gears",
        syntax: "<key> <period> <session id> <image>",
        summary: c"Internal: makes a time event, in files and on replicas.",
        handler: |_, command| time_events::inner_time_event(command),
    }
    inner_write_command {
        name: c"RG.INNERWRITE",
        flags: c"write getkeys-api",
        categories: c"write",
        syntax: "",
        summary: c"Internal: stands in front of a command that functions are linked to.",
        handler: |pinion, command| pinion.hooks.run_proxy(&pinion.engine, command, ProxyCommand::Write),
    }
    inner_write_more_command {
        name: c"RG.INNERWRITEMORE",
        flags: c"write deny-oom getkeys-api",
        categories: c"write",
        syntax: "",
        summary: c"Internal: stands in front of a command that functions are linked to.",
        handler: |pinion, command| pinion.hooks.run_proxy(&pinion.engine, command, ProxyCommand::WriteMore),
    }
}

/// `RG.INNERAFTER`, from the command filter only.
///
/// # Errors
/// Somebody else sent it.
fn run_after(command: &Command<'_>) -> Result<Answer, Error> {
    if !after::run_command(command.lock()) {
        return Err(Error::InnerCommand);
    }
    Ok(Reply::ok().into())
}
