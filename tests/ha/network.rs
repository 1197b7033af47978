//! The way to the datastore, or from agents to servers, is slow, narrow, lossy, one way only, or breaks in the middle of messages.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use tests::lab::{BACKYARD, Direction, Proxy, Weather, until, within_of};

use crate::cluster::{AGENTS, Cluster, now};
use crate::door::Door;
use crate::load::Load;
use crate::outage::{HEALED, all_goes_on, all_is_well, says_so};
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
/// Connections that break before it counts as a bad day: of all servers, and of one.
const CUTS: usize = 20;
const CUTS_OF_ONE: usize = 8;
/// Later than databases wait for the rest of a transaction (5 s, `server/src/store/sql/writer.rs`).
const LATE: Duration = Duration::from_secs(6);

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
    let back = thread::scope(|scope| {
        scope.spawn(|| all_is_well(cluster, healed));
        load.goes_on(HEALED)
    });
    let verdict = load.end();
    assert_eq!(verdict.broken(), 0, "a watch ended: {verdict}");
    assert_eq!(cluster.pods(cluster.servers[0]), before);
    eprintln!(
        "bad way: 20 writes in {slow:?} when it was slow, agents worked after {worked:?}; {CUTS} cuts in {torn:?}; writes \
         went on {back:?} after one direction stood still: {verdict}"
    );
}

/// Ways to some addresses, each through a proxy of its own, all of them in the same weather.
struct Ways(Vec<(SocketAddr, Proxy)>);

impl Ways {
    /// From an address of this machine's.
    fn open(at: Ipv4Addr, to: impl IntoIterator<Item = SocketAddr>, weather: Weather) -> Self {
        let ways = Self(to.into_iter().map(|to| (to, Proxy::start(at, to))).collect());
        ways.set(weather);
        ways
    }

    /// Whereto, and where the way begins.
    fn ends(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.0.iter().map(|(to, proxy)| (*to, proxy.address())).collect()
    }

    fn set(&self, weather: Weather) {
        self.0.iter().for_each(|(_, proxy)| proxy.set(weather));
    }

    fn set_one(&self, direction: Direction, weather: Weather) {
        self.0.iter().for_each(|(_, proxy)| proxy.set_one(direction, weather));
    }

    fn cuts(&self) -> usize {
        self.0.iter().map(|(_, proxy)| proxy.cuts()).sum()
    }
}

/// The way of one server only, which leads at first, under load at all of them: slow, then breaking, then silent. In the silence
/// its requests stand still at first and then, as those arrive, the answers to them; it has given up both when they go on. The
/// others write all the time, and so does that one but in the silence: then it says so. Agents work all the time.
pub fn the_way_of_one_server_is_bad(cluster: &mut Cluster) {
    until("somebody leads", || cluster.leader(cluster.servers[0]).is_some());
    let lame = cluster.leader(cluster.servers[0]).unwrap();
    let others = cluster.others(lame);
    let before = cluster.pods(others[0]);
    let door = cluster.door(lame);
    let load = Load::start(&cluster.doors, "lame");

    let ways = Ways::open(BACKYARD, cluster.database.addresses(), SLOW);
    let begun = Instant::now();
    cluster.lab.lead_around(lame, &ways.ends());
    let slow = writes(door, begun, "slow");
    let worked = agents_work(cluster, lame, "lame-slow");
    load.goes_on(HEALED);

    let begun = Instant::now();
    ways.set(TORN);
    while ways.cuts() < CUTS_OF_ONE {
        load.goes_on(HEALED);
    }
    let torn = begun.elapsed();
    ways.set(Weather::default());
    writes(door, Instant::now(), "whole");

    let begun = Instant::now();
    ways.set_one(Direction::There, STANDING);
    let (on, without) = thread::scope(|scope| {
        let on = scope.spawn(|| load.goes_on(HEALED));
        scope.spawn(|| says_so(door));
        scope.spawn(|| {
            sleep(LATE);
            // First, so that it hears nothing in between.
            ways.set_one(Direction::Back, STANDING);
            ways.set_one(Direction::There, Weather::default());
        });
        let without = agents_work_within(MOVE, begun, cluster, others[0], "lame-silent");
        (on.join().unwrap(), without)
    });
    let silent = begun.elapsed();
    assert_eq!(cluster.pods(lame), before);

    let healed = Instant::now();
    ways.set(Weather::default());
    let back = thread::scope(|scope| {
        let back = scope.spawn(|| writes(door, healed, "healed"));
        all_is_well(cluster, healed);
        within_of(HEALED, healed, "it is back among the servers", || {
            cluster.endpoints(others[0]) == cluster.servers
        });
        back.join().unwrap()
    });
    cluster.lab.lead_straight(lame);
    drop(ways); // that cuts what is open
    writes(door, Instant::now(), "straight");
    load.goes_on(HEALED);
    let verdict = load.end();
    assert!(verdict.doubts > 0, "nothing was on its way: {verdict}");
    assert_eq!(verdict.broken(), 0, "a watch ended: {verdict}");
    assert_eq!(cluster.pods(others[0]), before);
    eprintln!(
        "lame server: it wrote after {slow:?} when its way was slow, agents worked after {worked:?}; {CUTS_OF_ONE} cuts in \
         {torn:?}; silent for {silent:?}, others wrote after {on:?}, agents worked after {without:?}; healed, it wrote after \
         {back:?}: {verdict}"
    );
}

/// Makes some maps at a server whose way is bad; what is in doubt is asked again. Returns when that was done, from `begun` on.
fn writes(door: &Door, begun: Instant, what: &str) -> Duration {
    for number in 0..5 {
        // Not as the load's own maps are called.
        let map = format!("by-{}-{what}-{number}", door.name);
        within_of(HEALED, begun, "a server writes on its bad way", || {
            let code = now(door.create(&map, 1)).map(|answer| answer.code);
            matches!(code, Ok(201 | 409)) // in doubt first, and it had happened
        });
    }
    begun.elapsed()
}

/// Between agents and all servers: a second there and back at times, and every tenth packet is lost. Pods start and end, commands
/// run, and no node is taken for lost.
pub fn the_way_to_the_servers_is_bad(cluster: &mut Cluster) {
    let server = cluster.servers[1];
    let before = cluster.pods(server);
    let servers = cluster.servers.iter().map(|name| cluster.lab.address(name));
    let ways = Ways::open(HERE, servers.map(|host| format!("{host}:6443").parse().unwrap()), FAR);
    for agent in AGENTS {
        cluster.lab.lose(agent, LOST);
        cluster.lab.lead_around(agent, &ways.ends());
        // One that starts has the longest way to go before it works.
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
    drop(ways); // that cuts what is open
    let (heard_again, ready) = thread::scope(|scope| {
        let working = scope.spawn(|| all_goes_on(cluster, healed, server, "near"));
        let heard_again = within_of(MOVE, healed, "commands run at once", || {
            let said = cluster
                .at(server)
                .try_run(&["exec", &on(&before, AGENTS[0]), "--", "echo", "near"]);
            said.is_ok_and(|said| said == "near\n")
        });
        (heard_again, working.join().unwrap())
    });
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
