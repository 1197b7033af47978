//! The way to the datastore is slow, narrow, lossy, one way only, or breaks in the middle of messages.

use std::thread::sleep;
use std::time::Duration;

use tests::lab::{Direction, Weather};

use crate::cluster::Cluster;
use crate::load::Load;
use crate::outage::{HEALED, all_is_well};
use crate::steps::agents_work;

/// As between two towns, on a bad day.
const SLOW: Weather = Weather {
    delay: Duration::from_millis(15),
    jitter: Duration::from_millis(20),
    rate: Some(500_000),
    lost: 2,
    stalled: false,
    cut_after: None,
};
/// A firewall that forgets connections.
const TORN: Weather = Weather {
    delay: Duration::ZERO,
    jitter: Duration::from_millis(3),
    rate: None,
    lost: 0,
    stalled: false,
    cut_after: Some(40_000),
};
const STANDING: Weather = Weather {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    rate: None,
    lost: 0,
    stalled: true,
    cut_after: None,
};
/// Connections that break before it counts as a bad day.
const CUTS: usize = 20;

/// Under load: writes go on, though slowly; none is lost and none happens twice, watches stay open, and agents work.
pub fn the_way_to_the_datastore_is_bad(cluster: &mut Cluster) {
    let before = cluster.pods(cluster.servers[0]);
    let load = Load::start(&cluster.doors, "bad-way");
    let set = |cluster: &mut Cluster, weather| cluster.database.behind_a_proxy().1.set(weather);
    set(cluster, SLOW);
    let slow = load.goes_on(HEALED);
    let worked = agents_work(cluster, cluster.servers[1], "slow-way");
    load.goes_on(HEALED);
    set(cluster, TORN);
    let cuts = cluster.database.behind_a_proxy().1.cuts();
    let mut torn = Duration::ZERO;
    while cluster.database.behind_a_proxy().1.cuts() < cuts + CUTS {
        torn += load.goes_on(HEALED);
    }
    for direction in [Direction::There, Direction::Back] {
        set(cluster, Weather::default());
        load.goes_on(HEALED);
        cluster.database.behind_a_proxy().1.set_one(direction, STANDING);
        // Longer than a server waits for its database (`server/src/store/sql/connector.rs`).
        sleep(Duration::from_secs(11));
    }
    set(cluster, Weather::default());
    let back = load.goes_on(HEALED);
    all_is_well(cluster);
    let verdict = load.end();
    assert_eq!(verdict.broken(), 0, "a watch ended: {verdict}");
    assert_eq!(cluster.pods(cluster.servers[0]), before);
    eprintln!(
        "bad way: 20 writes in {slow:?} when it was slow, agents worked after {worked:?}; {CUTS} cuts in {torn:?}; writes \
         went on {back:?} after one direction stood still: {verdict}"
    );
}
