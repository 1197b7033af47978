//! The agent's balancers: one for the supervisor and, where the API has a port of its own, one for that.
//!
//! Tunnels lead to the supervisors, and what they tell of a server counts for the API on the same host, as in K3s.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Balancer, Felt, Pulse, host_of};

/// The servers that a cluster names, `host:port` each; sorted, none twice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Servers {
    /// Of their supervisors.
    pub supervisor: Vec<String>,
    /// Of their API; the same where one port serves both.
    pub api: Vec<String>,
}

/// Both. Addresses are those of supervisors, unless it says otherwise. Clones are the same ones.
#[derive(Clone)]
pub struct Balancers {
    supervisor: Balancer,
    api: Option<Balancer>,
}

impl From<Balancer> for Balancers {
    /// Where one port serves both.
    fn from(supervisor: Balancer) -> Self {
        Self { supervisor, api: None }
    }
}

impl Balancers {
    /// Where the API has another port. `api`: made by [`Balancer::beside`].
    pub const fn with_api(supervisor: Balancer, api: Balancer) -> Self {
        let api = Some(api);
        Self { supervisor, api }
    }

    /// The servers that the cluster names now.
    pub fn set(&self, servers: &Servers) {
        if let Some(api) = &self.api {
            api.set(&servers.api);
            let untried = api.unchecked();
            // A tunnel may stand already to one that is new here.
            for known in self.supervisor.healthy() {
                let same = untried.iter().filter(|address| host_of(address) == host_of(&known));
                same.for_each(|address| api.report(address, true));
            }
        }
        self.supervisor.set(&servers.supervisor);
    }

    /// As [`Balancer::report`].
    pub fn report(&self, address: &str, up: bool) {
        self.supervisor.report(address, up);
        self.at_api(address, |api, address| api.report(address, up));
    }

    /// As [`Balancer::unready`].
    pub fn unready(&self, address: &str) {
        self.supervisor.unready(address);
        self.at_api(address, Balancer::unready);
    }

    /// What answered last may be no server of the cluster, such as a machine that has got the address of one that an earlier run
    /// knew: the next connection tries the others first.
    pub fn doubt(&self) {
        if let Some(address) = self.supervisor.current() {
            self.report(&address, false);
        }
    }

    /// As [`Balancer::feel`].
    pub fn feel(&self, address: &str, pulse: Pulse) -> Felt {
        self.supervisor.feel(address, pulse)
    }

    /// As [`Balancer::another_lives`].
    pub async fn another_lives(&self, address: &str) {
        self.supervisor.another_lives(address).await;
    }

    /// Whether connections to a server are open, or being opened, and a tunnel to another one stands.
    pub fn could_leave(&self, address: &str) -> bool {
        let mut carries = self.supervisor.carries(address);
        self.at_api(address, |api, address| carries |= api.carries(address));
        carries && self.supervisor.has_another_tunnel(address)
    }

    /// The servers that a tunnel is wanted to.
    pub fn addresses(&self) -> Vec<String> {
        self.supervisor.addresses()
    }

    /// Notices of [`Self::set`], and of a server that can be reached again, by either.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.supervisor.changes()
    }

    /// Why no supervisor can be reached, if the last connection found none.
    pub fn trouble(&self) -> Option<String> {
        self.supervisor.trouble()
    }

    /// The API at the same host, if it has a balancer of its own.
    fn at_api(&self, address: &str, mut told: impl FnMut(&Balancer, &str)) {
        let Some(api) = &self.api else { return };
        let ways = api.addresses();
        let same = ways.iter().filter(|way| host_of(way) == host_of(address));
        same.for_each(|way| told(api, way));
    }
}

impl Balancer {
    /// A balancer for another port of the same servers: dials that find one back are noticed by both, and those of this one ask
    /// the tunnels of the other, by host.
    pub fn beside(&self, default: &str, remembered: &[String], seed: u64) -> Self {
        let mut inner = super::Inner::new(default, remembered, seed, Arc::clone(&self.0.resolve));
        inner.pulses = Arc::clone(&self.0.pulses);
        inner.changed = self.0.changed.clone();
        inner.beside = true;
        Self(Arc::new(inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn servers(hosts: &[&str]) -> Servers {
        let with = |port| hosts.iter().map(|host| format!("{host}:{port}")).collect();
        Servers {
            supervisor: with(9345),
            api: with(6443),
        }
    }

    fn both() -> (Balancers, Balancer) {
        let supervisor = Balancer::new("vip:9345", &[], 0);
        let api = supervisor.beside("vip:6443", &[], 0);
        (Balancers::with_api(supervisor, api.clone()), api)
    }

    #[tokio::test]
    async fn what_a_tunnel_tells_of_a_server_counts_for_its_api() {
        let (balancers, api) = both();
        balancers.set(&servers(&["a", "b"]));
        assert_eq!(api.order().len(), 3, "and the last resort");
        balancers.report("a:9345", true);
        balancers.report("b:9345", true);
        api.dialed("b:6443");
        assert_eq!(api.order(), ["b:6443", "a:6443", "vip:6443"]);
        let mut cut = api.cuts("b:6443");
        balancers.report("b:9345", false);
        assert!(cut.has_changed().unwrap(), "its connections go elsewhere");
        cut.mark_unchanged();
        assert_eq!(api.order(), ["a:6443", "vip:6443", "b:6443"]);
        balancers.unready("a:9345");
        assert_eq!(api.order()[0], "vip:6443");
        // The supervisor of a server whose API is gone works on.
        balancers.report("a:9345", true);
        balancers.report("b:9345", true);
        api.report("a:6443", false);
        assert_eq!(api.order()[0], "b:6443");
        assert_eq!(balancers.supervisor.healthy(), ["a:9345", "b:9345"]);
    }

    #[tokio::test]
    async fn an_api_that_is_named_after_its_tunnel_stands_is_trusted() {
        let (balancers, api) = both();
        balancers.supervisor.set(&addresses(&["a:9345", "b:9345"]));
        balancers.report("b:9345", true);
        balancers.set(&servers(&["a", "b"]));
        assert_eq!(api.healthy(), ["b:6443"]);
        assert_eq!(api.order()[0], "b:6443");
    }

    #[tokio::test]
    async fn connections_to_the_api_are_reason_enough_to_ask_a_silent_server() {
        let (balancers, api) = both();
        balancers.set(&servers(&["a", "b"]));
        let _a = balancers.feel("a:9345", Arc::new(|| Box::pin(std::future::pending())));
        let _b = balancers.feel("b:9345", Arc::new(|| Box::pin(std::future::ready(()))));
        assert!(!balancers.could_leave("a:9345"));
        let _open = api.cuts("a:6443");
        assert!(balancers.could_leave("a:9345"));
        assert!(!balancers.could_leave("b:9345"));
    }
}
