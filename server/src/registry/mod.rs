//! The registry: one row per resource, one path per verb.

pub mod resource;
