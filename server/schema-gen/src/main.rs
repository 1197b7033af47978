//! Writes the schema table.
fn main() {}
