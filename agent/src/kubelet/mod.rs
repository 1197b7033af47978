//! The kubelet: runs the pods that the API assigns to this node and reports what became of them.

pub mod disk;
pub mod downward;
pub mod env;
pub mod objects;
pub mod pod;
pub mod ports;
pub mod qos;
pub mod restart;
pub mod status;
#[cfg(test)]
mod testing;
pub mod volume;
