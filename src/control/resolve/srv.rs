//! Pure: SRV records (RFC 2782) to endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::ADDRESSES_MAX;

/// The largest weight that an endpoint may have.
const WEIGHT_MAX: u64 = 1_000;

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Lower ones are used first.
    pub priority: u16,
    /// The host, in lower case, with its final dot.
    pub target: String,
    /// The target's port.
    pub port: u16,
    /// Its share relative to those of the same priority.
    pub weight: u16,
}

/// One address of one target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// What it is sent as `Host`: the target's name, without its final dot, and the port.
    pub authority: String,
    /// Its share of the requests relative to the others', 1 to 1,000.
    pub weight: u16,
}

/// The records that can be used: none of a service that is "decidedly not available" (the target `.`), no port 0, the first
/// [`ADDRESSES_MAX`] by priority.
pub(super) fn usable(mut records: Vec<Record>) -> Vec<Record> {
    records.retain(|record| record.target != "." && record.port != 0);
    records.sort();
    records.dedup_by(|a, b| (a.priority, &a.target, a.port) == (b.priority, &b.target, b.port));
    records.truncate(ADDRESSES_MAX);
    records
}

/// The targets of the lowest priority that has an address, given the `addresses` of each target's name. A target's weight is
/// divided among its addresses, so that it gets the share that its record asks for; 0, "a very small share", counts as 1.
pub(super) fn targets(records: &[Record], addresses: &BTreeMap<String, Vec<IpAddr>>) -> Vec<Target> {
    let of = |record: &Record| addresses.get(&record.target).map_or(&[][..], Vec::as_slice);
    let Some(priority) = records.iter().filter(|record| !of(record).is_empty()).map(|record| record.priority).min()
    else {
        return Vec::new();
    };
    let group: Vec<&Record> =
        records.iter().filter(|record| record.priority == priority && !of(record).is_empty()).collect();
    // Shares as numbers of a common denominator: the largest is scaled to the largest weight only where they do not fit as
    // they are, since a weight that changes for no reason restarts the rotation.
    let shares: Vec<(u64, u64)> =
        group.iter().map(|record| (u64::from(record.weight.max(1)), of(record).len() as u64)).collect();
    let fit = shares.iter().all(|(weight, count)| *count == 1 && *weight <= WEIGHT_MAX);
    let largest = shares.iter().map(|(weight, count)| *weight as f64 / *count as f64).fold(0.0, f64::max);
    let mut targets: BTreeMap<SocketAddr, Target> = BTreeMap::new();
    for (record, (weight, count)) in group.into_iter().zip(shares) {
        let scaled = weight as f64 / count as f64 / largest * WEIGHT_MAX as f64;
        let weight = if fit { weight } else { (scaled.round() as u64).clamp(1, WEIGHT_MAX) } as u16;
        let authority = format!("{}:{}", record.target.trim_end_matches('.'), record.port);
        for address in of(record) {
            let address = SocketAddr::new(*address, record.port);
            // Two names of one address are one backend: the first name's, with the weight of both.
            let target =
                targets.entry(address).or_insert_with(|| Target { address, authority: authority.clone(), weight: 0 });
            target.weight = (target.weight + weight).min(WEIGHT_MAX as u16);
        }
    }
    targets.into_values().take(ADDRESSES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        let parts: Vec<&str> = text.split(' ').collect();
        let number = |index: usize| parts[index].parse().unwrap();
        Record { priority: number(0), weight: number(1), port: number(2), target: parts[3].to_owned() }
    }

    /// `hosts`: `a.=10.0.0.1,10.0.0.2`. Targets: `10.0.0.1:80 a:80 5`.
    fn check(records: &[&str], hosts: &[&str], expected: &[&str]) {
        let addresses = hosts.iter().map(|host| {
            let (name, list) = host.split_once('=').unwrap();
            (name.to_owned(), list.split(',').map(|address| address.parse().unwrap()).collect())
        });
        let records = usable(records.iter().map(|text| record(text)).collect());
        let found: Vec<String> = targets(&records, &addresses.collect())
            .into_iter()
            .map(|Target { address, authority, weight }| format!("{address} {authority} {weight}"))
            .collect();
        assert_eq!(found, expected, "{records:?}");
    }

    #[test]
    fn the_lowest_priority_that_has_an_address() {
        let hosts = ["a.=10.0.0.1", "b.=10.0.0.2", "c.=10.0.0.3"];
        check(&["10 1 80 a.", "10 3 81 b.", "20 1 80 c."], &hosts, &["10.0.0.1:80 a:80 1", "10.0.0.2:81 b:81 3"]);
        check(&["20 1 80 c.", "10 1 80 gone."], &hosts, &["10.0.0.3:80 c:80 1"]);
        check(&["10 1 80 gone.", "10 7 80 a.", "20 1 80 c."], &hosts, &["10.0.0.1:80 a:80 7"]);
        check(&["10 1 80 gone."], &hosts, &[]);
        check(&["0 0 0 ."], &hosts, &[]);
        check(&["0 0 80 ."], &hosts, &[]);
        check(&["10 1 0 a."], &hosts, &[]);
        check(&[], &hosts, &[]);
    }

    #[test]
    fn weights_fit_the_range() {
        let hosts = ["a.=10.0.0.1", "b.=10.0.0.2", "c.=10.0.0.3,10.0.0.4"];
        check(&["1 0 80 a.", "1 0 80 b."], &hosts, &["10.0.0.1:80 a:80 1", "10.0.0.2:80 b:80 1"]);
        check(&["1 0 80 a.", "1 1000 80 b."], &hosts, &["10.0.0.1:80 a:80 1", "10.0.0.2:80 b:80 1000"]);
        check(&["1 65535 80 a.", "1 6554 80 b."], &hosts, &["10.0.0.1:80 a:80 1000", "10.0.0.2:80 b:80 100"]);
        check(&["1 65535 80 a.", "1 1 80 b."], &hosts, &["10.0.0.1:80 a:80 1000", "10.0.0.2:80 b:80 1"]);
        // A target of two addresses gets no more than its share.
        let expected = ["10.0.0.1:80 a:80 1000", "10.0.0.3:80 c:80 500", "10.0.0.4:80 c:80 500"];
        check(&["1 5 80 a.", "1 5 80 c."], &hosts, &expected);
    }

    #[test]
    fn an_address_is_there_once() {
        let hosts = ["a.=10.0.0.1", "b.=10.0.0.1"];
        check(&["1 2 80 a.", "1 3 80 b."], &hosts, &["10.0.0.1:80 a:80 5"]);
        check(&["1 2 80 a.", "1 3 81 a."], &hosts, &["10.0.0.1:80 a:80 2", "10.0.0.1:81 a:81 3"]);
        check(&["1 2 80 a.", "1 2 80 a."], &hosts, &["10.0.0.1:80 a:80 2"]);
    }

    #[test]
    fn everything_is_bounded() {
        let many: Vec<Record> = (0..500).map(|i| record(&format!("1 1 80 t{i}."))).collect();
        let records = usable(many);
        assert_eq!(records.len(), ADDRESSES_MAX);
        let hosts = |i: u8| (0..ADDRESSES_MAX as u8).map(|j| IpAddr::from([10, 0, i, j])).collect();
        let addresses = records.iter().enumerate().map(|(i, record)| (record.target.clone(), hosts(i as u8)));
        assert_eq!(targets(&records, &addresses.collect()).len(), ADDRESSES_MAX);
    }
}
