//! The commands that call functions by name. Contract: docs/contract/readers-and-events.md chapter 7; what they do is
//! in `readers/command.rs`.

commands! {
    trigger_command {
        name: c"rg.trigger",
        flags: c"write",
        categories: c"write dangerous gears gears-call",
        syntax: "<trigger> [<argument> ...]",
        summary: c"Calls a function that was registered with this name.",
        handler: |pinion, command| pinion.commands.call(command),
    }
    trigger_on_key_command {
        name: c"rg.triggeronkey",
        flags: c"write",
        categories: c"write dangerous gears gears-call",
        syntax: "<trigger> <key> [<argument> ...]",
        summary: c"Calls a function where its key is: clients of a cluster find the shard by it.",
        key: 2,
        handler: |pinion, command| pinion.commands.call(command),
    }
}
