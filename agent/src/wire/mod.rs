//! What crosses a process boundary, as both programs read and write it.
//!
//! Pure data and parsing: no port, no clock, no file. The server's own table-driven schema is not here; these are the
//! few shapes that the agent needs too.

pub mod frame;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod join;
pub mod object;
pub mod percent;
pub mod pod;
pub mod quantity;
pub mod selector;
pub mod standing;
pub mod status;
pub mod taint;
pub mod time;
pub mod token;
