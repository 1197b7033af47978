//! The way to the datastore, or from agents to servers, is slow, narrow, lossy, one way only, or breaks in the middle of messages.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tests::lab::{Direction, Proxy, Weather, until, within_of};

use crate::cluster::{AGENTS, Cluster};
use crate::load::Load;
use crate::outage::{HEALED, all_is_well};
use crate::steps::{MOVE, agents_work, agents_work_within};

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
/// A satellite, and rain.
const FAR: Weather = Weather {
    delay: Duration::from_millis(150),
    jitter: Duration::from_millis(100),
    rate: Some(100_000),
    lost: 0,
    stalled: false,
    cut_after: None,
};
/// Packets in a hundred that get lost, each way.
const LOST: u32 = 10;
/// This machine, as the lab's hosts reach it.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// For pods on agents that are far away.
const PATIENCE: Duration = Duration::from_secs(60);
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
    let healed = Instant::now();
    set(cluster, Weather::default());
    let back = load.goes_on(HEALED);
    all_is_well(cluster, healed);
    let verdict = load.end();
    assert_eq!(verdict.broken(), 0, "a watch ended: {verdict}");
    assert_eq!(cluster.pods(cluster.servers[0]), before);
    eprintln!(
        "bad way: 20 writes in {slow:?} when it was slow, agents worked after {worked:?}; {CUTS} cuts in {torn:?}; writes \
         went on {back:?} after one direction stood still: {verdict}"
    );
}

/// Between agents and all servers: a second there and back at times, and every tenth packet is lost. Pods start and end, commands
/// run, and no node is taken for lost.
pub fn the_way_to_the_servers_is_bad(cluster: &mut Cluster) {
    let server = cluster.servers[1];
    let before = cluster.pods(server);
    let proxies: Vec<(&str, Proxy)> = cluster
        .servers
        .iter()
        .map(|name| {
            let to: SocketAddr = format!("{}:6443", cluster.lab.address(name)).parse().unwrap();
            let proxy = Proxy::start(HERE, to);
            proxy.set(FAR);
            (*name, proxy)
        })
        .collect();
    let ways: Vec<(&str, SocketAddr)> = proxies.iter().map(|(name, proxy)| (*name, proxy.address())).collect();
    for agent in AGENTS {
        cluster.lab.lose(agent, LOST);
        cluster.lab.lead_around(agent, &ways);
        // What is open goes straight on: new connections are opened through the proxies by an agent that starts.
        cluster.lab.end(agent, true);
        cluster.start_agent(agent);
    }
    let begun = Instant::now();
    for agent in AGENTS {
        let pod = on(&before, agent);
        until("commands run through every server", || {
            let all = cluster.servers.iter();
            all.map(|name| cluster.at(name).try_run(&["exec", &pod, "--", "echo", "heard"]))
                .all(|said| said.is_ok_and(|said| said == "heard\n"))
        });
    }
    let heard = begun.elapsed();
    let mut worked = Duration::ZERO;
    for round in 0..3 {
        worked = worked.max(agents_work_within(
            PATIENCE,
            Instant::now(),
            cluster,
            server,
            &format!("far-{round}"),
        ));
        assert_eq!(cluster.ready_nodes(server), 1 + AGENTS.len());
    }
    let healed = Instant::now();
    for agent in AGENTS {
        cluster.lab.lose_nothing(agent);
        cluster.lab.lead_straight(agent);
    }
    drop(proxies); // that cuts what is open
    let heard_again = within_of(MOVE, healed, "commands run at once", || {
        let said = cluster
            .at(server)
            .try_run(&["exec", &on(&before, AGENTS[0]), "--", "echo", "near"]);
        said.is_ok_and(|said| said == "near\n")
    });
    let ready = agents_work_within(MOVE, healed, cluster, server, "near");
    all_is_well(cluster, healed);
    assert_eq!(cluster.pods(server), before);
    eprintln!(
        "far agents: commands through every server after {heard:?}, worked within {worked:?}; straight again, commands after \
         {heard_again:?}, worked after {ready:?}"
    );
}

/// A pod of the Deployment on a node.
fn on(pods: &[String], node: &str) -> String {
    let found = pods.iter().find(|pod| pod.contains(&format!(" {node} "))).unwrap();
    found.split_whitespace().next().unwrap().to_owned()
}
