# One entry to every task; `just` lists them.

default:
    @just --list

# Format, lints and the shape of the tree.
check:
    tests/run lint

# Every test, with all set-up (root, Debian).
test *suites:
    tests/run {{suites}}

# The static agents for boxes.
dist *triples:
    targets/build {{triples}}

# A cluster of one node here (root).
run *flags:
    cargo run --release --bin k3s -- server {{flags}}
