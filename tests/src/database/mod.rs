//! Datastores of a test's own: real servers on loopback, with their data in a folder that goes with them.

pub mod etcd;
