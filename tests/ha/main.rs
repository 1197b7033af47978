//! Clusters that survive: whole programs on hosts of their own, on real databases, while servers, databases and networks
//! break, driven by the kubectl that people have.
//!
//! Each test is one cluster on one kind of datastore and breaks one thing after another. While it does, clients write, read
//! and watch at every server and remember what they were told (`load.rs`); what `docs/server-died.md` promises is held to the
//! second, and the answers must be explainable by one order of all operations (`tests/src/history`).

#![cfg(test)]

mod chronicle;
mod cluster;
mod database;
mod door;
mod island;
mod judge;
mod load;
mod members;
mod network;
mod outage;
mod pause;
mod promotion;
mod steps;
mod takeover;
mod watcher;

use cluster::Cluster;
use database::Database;
use island::Island;
use members::Loss;
use outage::Away;

#[test]
fn on_postgresql_a_cluster_survives() {
    if !tests::in_own_namespaces("on_postgresql_a_cluster_survives") {
        return;
    }
    let mut cluster = Cluster::start(&["a", "b"], Database::postgres);
    steps::they_are_one_cluster(&cluster);
    steps::a_deployment_runs(&cluster);
    steps::a_watch_goes_on_at_another_server(&cluster);
    steps::the_leader_is_killed(&mut cluster);
    steps::the_leader_is_stopped(&mut cluster);
    steps::the_load_balancer_is_taken_away(&mut cluster);
    outage::the_datastore_is_away(&mut cluster, Away::Killed);
    outage::the_datastore_is_away(&mut cluster, Away::Paused);
    pause::the_leader_is_paused_at_work(&cluster);
    outage::the_leader_is_cut_off_from_the_datastore(&cluster);
    network::the_way_to_the_datastore_is_bad(&mut cluster);
    promotion::a_standby_that_was_behind_takes_over(&mut cluster);
    cluster.stop();
}

#[test]
fn on_mariadb_a_cluster_survives() {
    if !tests::in_own_namespaces("on_mariadb_a_cluster_survives") {
        return;
    }
    let mut cluster = Cluster::start(&["a", "b", "c"], Database::mariadb);
    steps::they_are_one_cluster(&cluster);
    steps::a_deployment_runs(&cluster);
    steps::the_leader_is_killed(&mut cluster);
    steps::the_leader_is_stopped(&mut cluster);
    outage::the_datastore_is_away(&mut cluster, Away::Killed);
    outage::the_datastore_is_away(&mut cluster, Away::Paused);
    pause::the_leader_is_paused_at_work(&cluster);
    outage::the_leader_is_cut_off_from_the_datastore(&cluster);
    outage::an_agent_is_cut_off_from_a_server(&cluster);
    network::the_way_of_one_server_is_bad(&mut cluster);
    network::the_way_to_the_servers_is_bad(&mut cluster);
    cluster.stop();
}

#[test]
fn on_etcd_a_cluster_survives() {
    if !tests::in_own_namespaces("on_etcd_a_cluster_survives") {
        return;
    }
    let mut cluster = Cluster::start(&["a", "b"], Database::etcd);
    steps::they_are_one_cluster(&cluster);
    steps::a_deployment_runs(&cluster);
    let island = Island::cut_off(&mut cluster);
    members::a_member_is_lost(&mut cluster, Loss::Killed);
    members::a_member_is_lost(&mut cluster, Loss::Stalled);
    members::a_member_is_lost(&mut cluster, Loss::CutOff);
    island.comes_back(&mut cluster);
    steps::the_leader_is_killed(&mut cluster);
    steps::the_leader_is_stopped(&mut cluster);
    outage::the_datastore_is_away(&mut cluster, Away::Killed);
    outage::the_datastore_is_away(&mut cluster, Away::Paused);
    pause::the_leader_is_paused_at_work(&cluster);
    outage::the_leader_is_cut_off_from_the_datastore(&cluster);
    outage::an_agent_is_cut_off_from_a_server(&cluster);
    network::the_way_of_one_server_is_bad(&mut cluster);
    cluster.stop();
}
