//! A cluster of three hosts, driven by the kubectl that people have: a server with its node, and two agents.
//!
//! Each host is a network namespace with its own `/etc/rancher`, `/var/lib/rancher`, `/run` and `/var/log`, joined by veth
//! pairs to a bridge; the programs are the built ones. The whole test runs in namespaces of its own, so nothing stays.

#![cfg(test)]

mod elsewhere;
mod ends;
mod lives;
mod machine;
mod network;
mod rollouts;
mod streams;
mod walk;
mod watch;

use tests::lab::{Kubectl, Lab, image, until};

#[test]
fn a_cluster_is_started_joined_and_used() {
    if !tests::in_own_namespaces("a_cluster_is_started_joined_and_used") {
        return;
    }
    let mut lab = Lab::new();
    let (archive, oci) = (image::archive(lab.folder()), image::oci_archive(lab.folder()));
    for name in ["server", "one", "two"] {
        lab.add_host(name);
    }
    for name in ["server", "one"] {
        lab.put_image(name, &archive);
    }
    lab.put_image("server", &oci);
    lab.start_server("server");
    let kubectl = Kubectl::of(&lab, "server");
    until("the API is ready", || {
        kubectl.try_run(&["get", "--raw", "/readyz"]).is_ok()
    });
    walk::the_server_answers_as_kubernetes_does(&kubectl);
    lab.start_agent_as_told("one", "server");
    let (url, token) = (lab.url("server"), lab.node_token("server"));
    let token = token.to_string_lossy();
    let told = [
        ("K3S_URL", &*url),
        ("K3S_TOKEN_FILE", &*token),
        ("K3S_NODE_NAME", "two"),
    ];
    lab.start_agent_in("two", &told);
    let nodes = ["server", "one", "two"].map(|name| (name, lab.address(name)));
    walk::all_nodes_become_ready(&kubectl, &nodes);
    for (archive, image) in [(&archive, image::NAME), (&oci, image::OCI)] {
        lab.put_image("two", archive);
        walk::a_node_has_the_image(&kubectl, "two", image);
    }
    for host in ["server", "two"] {
        lives::an_image_of_an_oci_archive_runs(&kubectl, host);
    }
    walk::a_deployment_runs_with_its_config(&kubectl);
    walk::it_scales_rolls_and_goes(&kubectl);
    rollouts::a_watch_shows_a_pod_from_its_birth_to_its_end(&kubectl);
    rollouts::a_deployment_is_recreated(&kubectl);
    walk::bad_input_is_told_as_kubernetes_tells_it(&kubectl);
    lives::a_crashing_pod_waits_and_keeps_its_volume(&kubectl);
    lives::who_takes_too_much_memory_is_killed(&kubectl);
    ends::a_deleted_pod_is_heard_to_its_end(&kubectl, "one");
    ends::who_does_not_heed_the_signal_is_killed(&kubectl, "server");
    ends::a_hook_does_not_cost_the_container_its_signal(&kubectl, "two");
    streams::logs_are_printed_as_the_container_wrote_them(&kubectl);
    streams::logs_are_followed_to_the_end(&kubectl);
    streams::the_log_before_a_restart_is_kept(&kubectl);
    streams::what_has_no_log_says_why(&kubectl);
    streams::commands_run_in_containers(&kubectl);
    streams::a_container_is_attached_to(&kubectl);
    streams::ports_of_a_pod_are_forwarded(&kubectl);
    machine::a_pod_goes_outside_as_its_node(&kubectl, &lab, "two", "one");
    machine::certificates_are_checked_by_root(&lab, "server");
    streams::a_node_out_of_reach_is_told_and_one_that_came_back_is_reached(&kubectl, &mut lab);
    walk::an_agent_that_is_killed_adopts_its_pods(&kubectl, &mut lab);
    machine::a_server_is_interrupted_and_its_pods_go_on(&kubectl, &mut lab, "server");
    lab.stop();
}
