//! Stores that are SQL databases. SQLite is the one so far.

pub mod sqlite;
