//! The commands about the cluster. Contract: docs/contract/commands.md 1.20 to 1.23.

use super::check_may_block;
use crate::{
    cluster::{Cluster, topology::Topology},
    error::Error,
    server::{
        command::{Answer, Command},
        reply::Reply,
    },
};

commands! {
    info_cluster_command {
        name: c"rg.infocluster",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "",
        summary: c"Shows the shards of the cluster.",
        handler: |pinion, _| info_cluster(&pinion.cluster),
    }
    refresh_cluster_command {
        name: c"rg.refreshcluster",
        flags: c"readonly deny-script",
        categories: c"admin dangerous gears",
        syntax: "",
        summary: c"Looks for the shards of the cluster and opens the links to them anew.",
        handler: |pinion, command| refresh_cluster(&pinion.cluster, command),
    }
    cluster_set_command {
        name: c"rg.clusterset",
        flags: c"readonly deny-script",
        categories: c"admin dangerous gears",
        syntax: "<word> [<word> ...]",
        summary: c"Tells the shards of a cluster that is not Redis Cluster.",
        handler: |pinion, command| cluster_set(&pinion.cluster, command, false),
    }
    cluster_set_from_shard_command {
        name: c"rg.clustersetfromshard",
        flags: c"readonly deny-script",
        categories: c"admin dangerous gears",
        syntax: "<word> [<word> ...]",
        summary: c"As RG.CLUSTERSET, where no shards are known.",
        handler: |pinion, command| cluster_set(&pinion.cluster, command, true),
    }
    network_test_command {
        name: c"rg.networktest",
        flags: c"readonly",
        categories: c"admin dangerous gears",
        syntax: "",
        summary: c"Sends a message to each other shard, which writes it to its log.",
        handler: |pinion, _| network_test(&pinion.cluster),
    }
}

/// `RG.INFOCLUSTER`
///
/// # Errors
/// None.
fn info_cluster(cluster: &Cluster) -> Result<Answer, Error> {
    Ok(cluster.info().into())
}

/// `RG.REFRESHCLUSTER`
///
/// # Errors
/// The caller cannot wait.
fn refresh_cluster(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    check_may_block(command)?;
    let client = command.block()?;
    cluster.refresh(move || client.answer(Reply::ok()));
    Ok(Answer::Done)
}

/// `RG.CLUSTERSET _ _ _ _ _ <my id> _ <number of ranges> {_ <shard id> _ <first slot> <last slot> _
/// <password>@<ip>:<port> [UNIXADDR <path>] _}`, and RG.CLUSTERSETFROMSHARD, which changes nothing where there is a
/// cluster.
///
/// # Errors
/// The caller cannot wait; the words do not describe a cluster.
fn cluster_set(cluster: &Cluster, command: &Command<'_>, unless_known: bool) -> Result<Answer, Error> {
    check_may_block(command)?;
    let words = command.argv().to_vecs();
    let topology = Topology::of_words(&words)?;
    let client = command.block()?;
    cluster.set(topology, words, unless_known, move || client.answer(Reply::ok()));
    Ok(Answer::Done)
}

/// `RG.NETWORKTEST`
///
/// # Errors
/// None.
fn network_test(cluster: &Cluster) -> Result<Answer, Error> {
    cluster.network_test();
    Ok(Reply::ok().into())
}
