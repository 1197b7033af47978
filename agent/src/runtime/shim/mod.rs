//! The pod's shim.

/// Runs what `k3s-agent shim …` names; never returns. `args`: the words after `shim`.
pub fn main(args: Vec<std::ffi::OsString>) -> ! {
    drop(args);
    std::process::exit(64)
}
