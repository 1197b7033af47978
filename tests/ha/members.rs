//! One of three members of etcd is killed, stands still or loses the others: the other two are enough.

use std::thread;
use std::time::Instant;

use tests::lab::within_of;

use crate::cluster::{Cluster, now};
use crate::load::Load;
use crate::outage::{HEALED, all_is_well};
use crate::steps::{MOVE, agents_work_within};

/// What happens to a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loss {
    /// One that follows is killed as by a power cut.
    Killed,
    /// The one that leads stands still, its connections open.
    Stalled,
    /// The one that leads does not reach the others any more; servers reach it.
    CutOff,
}

/// Under load: writes go on at every server with the other two, none is lost, none happens twice, watches stay open.
pub fn a_member_is_lost(cluster: &mut Cluster, how: Loss) {
    let first = cluster.servers[0];
    let before = cluster.pods(first);
    let phase = match how {
        Loss::Killed => "member-killed",
        Loss::Stalled => "member-stalled",
        Loss::CutOff => "member-cut-off",
    };
    let load = Load::start(&cluster.doors, phase);
    let members = cluster.database.members();
    let leader = members.leader().unwrap();
    let begun = Instant::now();
    match how {
        Loss::Killed => members.kill((leader + 1) % members.size()).unwrap(),
        Loss::Stalled => members.pause(leader).unwrap(),
        Loss::CutOff => members.cut_off(leader).unwrap(),
    }
    let (on, worked) = thread::scope(|scope| {
        let on = scope.spawn(|| load.goes_on(HEALED));
        let worked = agents_work_within(MOVE, begun, cluster, first, phase);
        (on.join().unwrap(), worked)
    });
    if how == Loss::CutOff {
        let members = cluster.database.members();
        within_of(HEALED, begun, "another member leads", || {
            members.leader().unwrap() != leader
        });
    }
    for name in cluster.servers.clone() {
        let (door, map) = (cluster.door(name), format!("without-{phase}-{name}"));
        within_of(HEALED, begun, "every server writes", || {
            let code = now(door.create(&map, 1)).map(|answer| answer.code);
            matches!(code, Ok(201 | 409)) // in doubt first, and it had happened
        });
    }
    load.goes_on(HEALED);
    let members = cluster.database.members();
    let healed = Instant::now();
    match how {
        Loss::Killed => members.start_again((leader + 1) % members.size()).unwrap(),
        Loss::Stalled => members.resume(leader).unwrap(),
        Loss::CutOff => members.mend().unwrap(),
    }
    let back = thread::scope(|scope| {
        scope.spawn(|| all_is_well(cluster, healed));
        load.goes_on(MOVE)
    });
    let verdict = load.end();
    assert_eq!(verdict.broken(), 0, "a watch ended: {verdict}");
    assert_eq!(cluster.pods(first), before);
    eprintln!(
        "{phase}: writes went on after {on:?}, agents worked after {worked:?}; after it was back {back:?}: {verdict}"
    );
}
