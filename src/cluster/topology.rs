//! Which shards there are and where: as Redis Cluster tells it (CLUSTER SLOTS), or as RG.CLUSTERSET does. Plain data.
//! Contract: docs/contract/commands.md 1.20 to 1.22 and 8.1.

use std::collections::BTreeMap;

use crate::{
    engine::{
        id::ShardId,
        members::{Members, SLOTS, Slots},
    },
    error::Error,
    server::reply::Reply,
};

/// How many words of RG.CLUSTERSET stand in front of the ranges, its name included.
const HEAD: usize = 9;

/// Where a shard listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    /// What RG.CLUSTERSET gave; Redis Cluster has none.
    pub password: Option<String>,
}

/// One master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub address: Address,
    pub slots: Vec<Slots>,
}

/// All masters, as this server knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The id of this server. A replica is none of the shards.
    pub me: ShardId,
    pub shards: BTreeMap<ShardId, Shard>,
}

impl Topology {
    /// Reads the reply of CLUSTER SLOTS. `None` if it is no such reply, or says nothing about masters.
    pub fn of_slots(me: ShardId, reply: &Reply) -> Option<Self> {
        let Reply::Array(ranges) = reply else { return None };
        let mut shards = BTreeMap::new();
        for range in ranges {
            let Reply::Array(range) = range else { return None };
            let [Reply::Int(first), Reply::Int(last), Reply::Array(master), ..] = range.as_slice() else {
                return None;
            };
            let (id, address) = master_of(master)?;
            let slots = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            let shard = shards.entry(id).or_insert_with(|| Shard {
                address,
                slots: Vec::new(),
            });
            shard.slots.push(slots);
        }
        for shard in shards.values_mut() {
            shard.slots.sort_unstable();
        }
        Some(Self { me, shards })
    }

    /// Reads the words of RG.CLUSTERSET, its name included.
    ///
    /// # Errors
    /// A word is missing, or not what is expected in its place.
    pub fn of_words(words: &[Vec<u8>]) -> Result<Self, Error> {
        let text = |place: usize, what: &'static str| {
            let word = words.get(place).ok_or(Error::ClusterSetCut)?;
            std::str::from_utf8(word).map_err(|_| Error::BadClusterSet(what))
        };
        if words.len() < HEAD {
            return Err(Error::ClusterSetCut);
        }
        let id =
            |place| ShardId::parse_short(text(place, "id")?.as_bytes()).ok_or(Error::BadClusterSet("id"));
        let me = id(6)?;
        let count: usize = text(8, "number of ranges")?
            .parse()
            .map_err(|_| Error::BadClusterSet("number of ranges"))?;
        let mut shards: BTreeMap<ShardId, Shard> = BTreeMap::new();
        let mut place = HEAD;
        for _ in 0..count {
            let shard = id(place + 1)?;
            let slot = |place| {
                let slot = text(place, "slot")?.parse().ok();
                slot.filter(|&slot: &u16| slot < SLOTS)
                    .ok_or(Error::BadClusterSet("slot"))
            };
            let slots = (slot(place + 3)?, slot(place + 4)?);
            let address = address(text(place + 6, "address")?).ok_or(Error::BadClusterSet("address"))?;
            place += 7;
            if words
                .get(place)
                .is_some_and(|word| word.eq_ignore_ascii_case(b"UNIXADDR"))
            {
                text(place + 1, "path")?;
                place += 2;
            }
            // A label, which may be missing after the last one.
            place += 1;
            let known = shards.entry(shard).or_insert_with(|| Shard {
                address,
                slots: Vec::new(),
            });
            known.slots.push(slots);
        }
        Ok(Self { me, shards })
    }

    /// The cluster as the engine needs it; `None` while there is no other shard, or this server is none of them.
    pub fn members(&self) -> Option<Members> {
        let is_shard = self.shards.len() > 1 && self.shards.contains_key(&self.me);
        is_shard.then(|| self.slots())
    }

    /// All masters with their slots.
    pub fn slots(&self) -> Members {
        let slots = self.shards.iter();
        Members::new(slots.flat_map(|(id, shard)| shard.slots.iter().map(|slots| (*id, *slots))))
    }

    /// True if there are other shards.
    pub fn is_cluster(&self) -> bool {
        self.shards.len() > 1
    }
}

/// The owners of slots, as the text of CLUSTER NODES shows them: `<id> <address> <flags> <master> <ping> <pong> <epoch>
/// <state> <slots> ...`
pub fn owners(nodes: &str) -> Members {
    let mut found: Vec<(ShardId, Slots)> = Vec::new();
    for line in nodes.lines() {
        let mut words = line.split(' ');
        let Some(id) = words.next().and_then(|id| ShardId::parse(id.as_bytes())) else {
            continue;
        };
        for word in words.skip(7) {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
                found.push((id, (first, last)));
            }
        }
    }
    Members::new(found)
}

/// True if the text of CLUSTER NODES shows a slot of this node on its way: `[<slot>->-<id>]` or `[<slot>-<-<id>]`.
pub fn moving_slot(nodes: &str) -> bool {
    let own = |line: &&str| {
        line.split(' ')
            .nth(2)
            .is_some_and(|flags| flags.contains("myself"))
    };
    nodes
        .lines()
        .filter(own)
        .any(|line| line.split(' ').any(|word| word.starts_with('[')))
}

/// `[host, port, id, ...]`
fn master_of(master: &[Reply]) -> Option<(ShardId, Address)> {
    let [Reply::Bulk(host), Reply::Int(port), Reply::Bulk(id), more @ ..] = master else {
        return None;
    };
    let preferred = String::from_utf8(host.clone()).ok()?;
    // Where the preferred name is unknown, the other ones stand behind.
    let host = match preferred.as_str() {
        "" | "?" => other_name(more).unwrap_or(preferred),
        _ => preferred,
    };
    let address = Address {
        host,
        port: u16::try_from(*port).ok()?,
        password: None,
    };
    Some((ShardId::parse(id)?, address))
}

fn other_name(more: &[Reply]) -> Option<String> {
    let Some(Reply::Array(names)) = more.first() else {
        return None;
    };
    let name = names.chunks(2).find_map(|pair| match pair {
        [Reply::Bulk(kind), Reply::Bulk(name)] if kind == b"ip" && !name.is_empty() => Some(name.clone()),
        _ => None,
    })?;
    String::from_utf8(name).ok()
}

/// `<password>@<host>:<port>`, the host in brackets or not.
fn address(text: &str) -> Option<Address> {
    let (password, place) = text.rsplit_once('@')?;
    let (host, port) = place.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(())?;
    Some(Address {
        host: host.to_owned(),
        port: port.parse().ok()?,
        password: Some(password.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> ShardId {
        ShardId::parse_short(digit.as_bytes()).unwrap_or(ShardId::STANDALONE)
    }

    fn range(first: i64, last: i64, host: &str, digit: &str) -> Reply {
        let master = vec![
            Reply::bulk(host),
            Reply::Int(7000),
            Reply::bulk(id(digit).to_string()),
            Reply::Array(vec![Reply::bulk("ip"), Reply::bulk("10.0.0.1")]),
        ];
        Reply::Array(vec![Reply::Int(first), Reply::Int(last), Reply::Array(master)])
    }

    #[test]
    fn slots_make_shards() {
        let reply = Reply::Array(vec![
            range(200, 300, "a", "1"),
            range(0, 100, "?", "2"),
            range(101, 199, "a", "1"),
        ]);
        let topology = Topology::of_slots(id("1"), &reply);
        let Some(topology) = topology else {
            panic!("no topology")
        };
        assert_eq!(topology.shards[&id("1")].slots, [(101, 199), (200, 300)]);
        assert_eq!(topology.shards[&id("2")].address.host, "10.0.0.1");
        assert!(topology.members().is_some());
        let replica = Topology {
            me: id("3"),
            ..topology
        };
        assert!(replica.is_cluster() && replica.members().is_none());
        assert_eq!(Topology::of_slots(id("1"), &Reply::error("ERR")), None);
    }

    #[test]
    fn owners_are_read_from_nodes() {
        let (one, two) = (id("1"), id("2"));
        let nodes = format!(
            "{one} 127.0.0.1:1@2,host myself,master - 0 0 1 connected 0-10 12\n\
             {two} :0@0 slave,fail {one} 0 0 1 disconnected\n{two} 127.0.0.1:3@4 master - 0 0 2 connected 11 13-16383\n"
        );
        let expected = [
            (one, (0, 10)),
            (one, (12, 12)),
            (two, (11, 11)),
            (two, (13, 16383)),
        ];
        assert_eq!(owners(&nodes), Members::new(expected));
        assert!(!moving_slot(&nodes));
        assert!(moving_slot(
            &nodes.replace(" 12\n", &format!(" 12 [12->-{two}]\n"))
        ));
        assert!(!moving_slot(
            &nodes.replace("16383", &format!("16383 [12-<-{one}]"))
        ));
    }

    fn words(text: &str) -> Vec<Vec<u8>> {
        text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
    }

    const TWO: &str = "rg.clusterset _ _ _ _ _ 1 _ 2 _ 1 _ 0 8191 _ pw@10.0.0.1:7000 _ \
                       _ 2 _ 8192 16383 _ @[::1]:7001 UNIXADDR /tmp/x";

    #[test]
    fn clusterset_is_read_word_by_word() {
        let Ok(topology) = Topology::of_words(&words(TWO)) else {
            panic!("refused")
        };
        assert_eq!(topology.me, id("1"));
        let second = &topology.shards[&id("2")];
        assert_eq!((second.address.host.as_str(), second.address.port), ("::1", 7001));
        assert_eq!(topology.shards[&id("1")].address.password.as_deref(), Some("pw"));
    }

    #[test]
    fn clusterset_refuses_what_it_cannot_read() {
        let refused = |text: &str| Topology::of_words(&words(text)).err();
        assert_eq!(refused("rg.clusterset _ _ 1"), Some(Error::ClusterSetCut));
        assert_eq!(
            refused("rg.clusterset _ _ _ _ _ 1 _ 2"),
            Some(Error::ClusterSetCut)
        );
        let change = |from: &str, to: &str| refused(&TWO.replace(from, to));
        assert_eq!(
            change("_ 2 _ 1", "_ x _ 1"),
            Some(Error::BadClusterSet("number of ranges"))
        );
        assert_eq!(change("16383", "16384"), Some(Error::BadClusterSet("slot")));
        assert_eq!(change("pw@", ""), Some(Error::BadClusterSet("address")));
        assert_eq!(change(":7000", ""), Some(Error::BadClusterSet("address")));
    }
}
