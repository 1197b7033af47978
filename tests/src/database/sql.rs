//! What the SQL database servers have in common.

use std::net::Ipv4Addr;
use std::path::Path;

use super::Server;

/// A SQL database server that tests start, mistreat and ask.
pub trait SqlServer: Send + Sync + Sized + 'static {
    /// Makes an empty one and starts it, on loopback.
    fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// The same where others reach it: on this address of a test's own network.
    fn start_at(address: Ipv4Addr) -> Self;

    /// Starts it on what is there.
    fn start_again(&mut self);

    /// What is its own: its data in `data`.
    fn folder(&self) -> &Path;

    /// Its process; `None` once it was killed.
    fn process(&mut self) -> &mut Option<Server>;

    /// The endpoint of a database as K3s takes it, parameters such as `?tls=true` behind it.
    fn endpoint(&self, database: &str, parameters: &str) -> String;

    /// Runs SQL as the superuser and returns what it printed, without headers.
    fn sql(&self, database: &str, text: &str) -> String;

    /// Ends every connection of ours to a database.
    fn cut_connections(&self, database: &str);

    /// Ends it as a power cut would.
    fn kill(&mut self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// It stands still, connections and all.
    fn pause(&mut self) {
        self.process().iter().for_each(Server::pause);
    }

    /// It goes on.
    fn resume(&mut self) {
        self.process().iter().for_each(Server::resume);
    }
}
