//! The commands about the cluster. Contract: `commands.md` 1.20 to 1.23.

use super::check_may_block;
use crate::{
    cluster::{Cluster, topology::Topology},
    error::Error,
    server::{
        command::{Answer, Command},
        reply::Reply,
    },
};

/// `RG.INFOCLUSTER`
///
/// # Errors
/// None.
pub fn info_cluster(cluster: &Cluster) -> Result<Answer, Error> {
    Ok(cluster.info().into())
}

/// `RG.REFRESHCLUSTER`
///
/// # Errors
/// The caller cannot wait.
pub fn refresh_cluster(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    check_may_block(command)?;
    let client = command.block();
    cluster.refresh(move || client.answer(Reply::ok()));
    Ok(Answer::Done)
}

/// `RG.CLUSTERSET _ _ _ _ _ <my id> _ <number of ranges> {_ <shard id> _ <first slot> <last slot> _
/// <password>@<ip>:<port> [UNIXADDR <path>] _}`, and RG.CLUSTERSETFROMSHARD, which changes nothing where there is a
/// cluster.
///
/// # Errors
/// The caller cannot wait; the words do not describe a cluster.
pub fn cluster_set(cluster: &Cluster, command: &Command<'_>, unless_known: bool) -> Result<Answer, Error> {
    check_may_block(command)?;
    let words = command.argv().to_vecs();
    let topology = Topology::of_words(&words)?;
    let client = command.block();
    cluster.set(topology, words, unless_known, move || client.answer(Reply::ok()));
    Ok(Answer::Done)
}

/// `RG.NETWORKTEST`
///
/// # Errors
/// None.
pub fn network_test(cluster: &Cluster) -> Result<Answer, Error> {
    cluster.network_test();
    Ok(Reply::ok().into())
}
