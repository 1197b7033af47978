//! `k3s`.
fn main() {}
