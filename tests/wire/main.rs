//! What crosses the wire between agents and servers, byte for byte: K3s' supervisor routes and its tunnel.
//!
//! One end is ours, the built program or the agent's own code, and the other is written here: requests are bytes, answers are taken apart
//! only as far as HTTP frames them. What is expected is what K3s sends; where this project means to differ, the line says so
//! and `docs/k3s-differences.md` says why. Each test runs in a network namespace of its own, with nothing but loopback.

#![cfg(test)]

mod agent_tunnel;
mod authorities;
mod bootstrap;
mod certificates;
mod files;
mod handshakes;
mod http;
mod joining;
mod leaves;
mod nodes;
mod played;
mod ports;
mod rights;
mod routes;
mod server;
mod tunnel;

use server::Server;

#[test]
fn every_route_answers_as_k3s_does() {
    if !tests::in_own_namespaces("every_route_answers_as_k3s_does") {
        return;
    }
    let server = Server::start();
    files::tokens_are_where_k3s_has_them(&server);
    routes::each_credential_opens_what_it_is_for(&server);
    routes::each_method_is_taken_where_it_belongs(&server);
    routes::answers_are_these_bytes(&server);
    routes::refusals_are_a_status(&server);
    routes::the_names_of_the_api_are_given_to_no_node(&server);
    routes::old_and_broken_http_is_answered(&server);
    bootstrap::a_bootstrap_token_is_good_as_bearer_and_as_nothing_else(&server);
    certificates::what_names_nobody_is_401_and_stands_in_no_passwords_way(&server);
    certificates::the_api_answers_what_names_nobody_as_kubernetes_does(&server);
    certificates::a_node_whose_certificate_ran_out_joins_by_its_token(&server);
    leaves::certificates_say_what_those_of_k3s_say(&server);
    authorities::the_five_authorities_are_those_of_k3s(&server);
    authorities::of_a_request_its_key_counts(&server);
    authorities::a_node_need_not_say_its_addresses(&server);
    handshakes::handshakes_are_as_k3s_has_them(&server);
    files::a_nodes_record_is_k3s_own(&server);
    rights::agents_certificates_open_what_k3s_gives_them(&server);
    rights::what_is_between_servers_is_for_servers(&server);
    rights::a_token_that_cannot_be_read_changes_nothing(&server);
    nodes::a_deleted_nodes_certificate_renews_nothing(&server);
    nodes::another_token_takes_the_old_ones_place(&server);
    server.stop();
}

#[test]
fn a_server_on_ipv6_alone_answers_as_others_do() {
    if !tests::in_own_namespaces("a_server_on_ipv6_alone_answers_as_others_do") {
        return;
    }
    let server = Server::start_at("::1", "[::1]:6443");
    routes::each_credential_opens_what_it_is_for(&server);
    routes::addresses_of_version_six_are_in_brackets(&server);
    server.stop();
}

#[test]
fn a_tunnel_at_the_server_carries_the_frames_of_k3s() {
    if !tests::in_own_namespaces("a_tunnel_at_the_server_carries_the_frames_of_k3s") {
        return;
    }
    let server = Server::start();
    tunnel::frames_at_the_server_are_these_bytes(&server);
    server.stop();
}

#[test]
fn an_agents_identity_is_where_k3s_has_it() {
    files::an_agents_identity_is_where_k3s_has_it();
}

#[tokio::test]
async fn a_tunnel_at_the_agent_carries_the_frames_of_k3s() {
    agent_tunnel::frames_at_the_agent_are_these_bytes().await;
}

#[tokio::test]
async fn an_agents_join_is_these_requests_and_it_tells_refusals_apart() {
    joining::a_join_is_these_requests().await;
    joining::a_tunnel_is_asked_for_with_the_kubelets_certificate().await;
    joining::refusals_are_told_apart().await;
}

#[test]
fn an_agent_at_servers_with_two_ports_has_two_balancers() {
    if !tests::in_own_namespaces("an_agent_at_servers_with_two_ports_has_two_balancers") {
        return;
    }
    tests::run("ip", &["link", "set", "lo", "up"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .unwrap()
        .block_on(ports::an_api_with_a_port_of_its_own_has_a_balancer_of_its_own());
}
