//! Who asks (`who`, `token`), and what they may do (`may`, `node`, `bootstrap`).

pub mod bootstrap;
pub mod escalate;
pub mod guard;
pub mod impersonate;
pub mod may;
pub mod node;
pub mod token;
pub mod who;
