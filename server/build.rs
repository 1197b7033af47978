//! Links the server with its relative relocations packed (RELR): 29,000 pointers in tables take some kilobytes in the file then,
//! not 24 bytes each, and a start reads that much less. glibc applies them from version 2.36 on, and the linker notes that need in
//! the file; an older linker says that it does not know the option, and packs nothing.

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script by the environment alone"
)]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of_target = |key| std::env::var(key).unwrap_or_default();
    if of_target("CARGO_CFG_TARGET_OS") == "linux" && of_target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
