//! `k3s-agent`.

fn main() {
    // Before anything else: a shim must not carry what an agent sets up.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "shim") {
        agent::runtime::shim::main(words.collect());
    }
}
