//! `k3s-agent`.
fn main() {}
