//! What crosses the wire between agents and servers, byte for byte: K3s' supervisor routes and its tunnel.
//!
//! The far end is always the built program, and the near end is written here: requests are bytes, answers are taken apart
//! only as far as HTTP frames them. What is expected is what K3s sends; where this project means to differ, the line says so
//! and `docs/k3s-differences.md` says why. Each test runs in a network namespace of its own, with nothing but loopback.

#![cfg(test)]

mod http;
mod routes;
mod server;

use server::Server;

#[test]
fn every_route_answers_as_k3s_does() {
    if !tests::in_own_namespaces("every_route_answers_as_k3s_does") {
        return;
    }
    let server = Server::start();
    routes::each_credential_opens_what_it_is_for(&server);
    routes::each_method_is_taken_where_it_belongs(&server);
    routes::answers_are_these_bytes(&server);
    routes::refusals_are_a_status(&server);
    routes::old_and_broken_http_is_answered(&server);
    server.stop();
}
