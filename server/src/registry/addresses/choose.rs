//! Which cluster IP and node ports a Service gets, given what is taken. Pure; `claim.rs` makes them the Service's own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use agent::wire::object::{self, at, integer, list, text};
use serde_json::{Value, json};

use crate::registry::resource::FieldError;

/// Where cluster IPs and node ports come from.
#[derive(Clone, Debug)]
pub struct ServiceRange {
    /// The network's address.
    pub network: Ipv4Addr,
    /// Its length in bits.
    pub bits: u8,
    /// Node ports.
    pub ports: RangeInclusive<u16>,
}

impl Default for ServiceRange {
    /// K3s' own.
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 43, 0, 0),
            bits: 16,
            ports: 30_000..=32_767,
        }
    }
}

impl ServiceRange {
    /// Number of addresses, the network's and the broadcast's own among them.
    fn size(&self) -> u32 {
        1_u32
            .checked_shl(32_u32.saturating_sub(self.bits.into()))
            .unwrap_or(u32::MAX)
    }

    fn base(&self) -> u32 {
        u32::from(self.network) & !self.size().wrapping_sub(1)
    }

    fn holds(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.base());
        offset > 0 && offset < self.size() - 1
    }

    /// The addresses below this offset are for people to choose. Source: Kubernetes v1.36 `ipallocator.calculateRangeOffset`.
    fn reserved(&self) -> u32 {
        match self.size() / 16 {
            0..16 => 0,
            part => part.min(256),
        }
    }

    fn text(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base()), self.bits)
    }
}

/// What others have.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub addresses: BTreeSet<Ipv4Addr>,
    pub ports: BTreeSet<u16>,
}

/// The node ports that a Service names, the one of its health check among them.
pub(super) fn node_ports(service: &Value) -> BTreeSet<u16> {
    let ports = list(service, &["spec", "ports"]).iter();
    let ports = ports.filter_map(|port| integer(port, &["nodePort"]));
    let health = integer(service, &["spec", "healthCheckNodePort"]);
    ports
        .chain(health)
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .collect()
}

/// By what is chosen.
pub(super) struct Choice<'a> {
    pub range: &'a ServiceRange,
    pub taken: &'a Taken,
    /// The Service as it was.
    pub old: Option<&'a Value>,
    pub random: [u8; 16],
}

impl Choice<'_> {
    /// Fills in what the Service needs and does not have; wishes that cannot be granted are faults.
    pub(super) fn fill(&self, service: &mut Value, faults: &mut Vec<FieldError>) {
        let kind = text(service, &["spec", "type"]).to_owned();
        if kind != "ExternalName" {
            self.address(service, faults);
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            self.ports(service, faults);
        }
    }

    fn address(&self, service: &mut Value, faults: &mut Vec<FieldError>) {
        let asked = text(service, &["spec", "clusterIP"]).to_owned();
        if asked == "None"
            || self
                .old
                .is_some_and(|old| !asked.is_empty() && text(old, &["spec", "clusterIP"]) == asked)
        {
            return;
        }
        let refuse = |faults: &mut Vec<FieldError>, detail: String| {
            let value = json!([asked]);
            faults.push(FieldError::invalid("spec.clusterIPs", &value, &detail));
        };
        if !asked.is_empty() {
            // The kind's own rules refuse what is no address at all; an IPv6 one is out of range.
            let held = asked
                .parse::<Ipv4Addr>()
                .ok()
                .filter(|address| self.range.holds(*address));
            let Some(address) = held else {
                let detail = format!(
                    "failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range of valid IPs is {}",
                    self.range.text()
                );
                return refuse(faults, detail);
            };
            if self.taken.addresses.contains(&address) {
                return refuse(
                    faults,
                    format!("failed to allocate IP {asked}: provided IP is already allocated"),
                );
            }
            return;
        }
        let Some(address) = free_address(self.range, &self.taken.addresses, self.random) else {
            return refuse(faults, "failed to allocate a serviceIP: range is full".to_owned());
        };
        object::set(service, &["spec", "clusterIP"], address.to_string());
        object::set(service, &["spec", "clusterIPs"], json!([address.to_string()]));
    }

    fn ports(&self, service: &mut Value, faults: &mut Vec<FieldError>) {
        let before = self.old.map(node_ports).unwrap_or_default();
        let mut used = self.taken.ports.clone();
        let kind = text(service, &["spec", "type"]);
        let wanted =
            kind == "NodePort" || at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&json!(false));
        let health = text(service, &["spec", "externalTrafficPolicy"]) == "Local" && kind == "LoadBalancer";
        let asked: Vec<(Option<u16>, String)> = list(service, &["spec", "ports"])
            .iter()
            .map(|port| {
                let number = integer(port, &["nodePort"]).and_then(|port| u16::try_from(port).ok());
                (number.filter(|port| *port > 0), text(port, &["protocol"]).to_owned())
            })
            .collect();
        // Explicit wishes first: a free choice must not take one of them.
        let mut mine: BTreeSet<(u16, String)> = BTreeSet::new();
        for (index, (number, protocol)) in asked.iter().enumerate() {
            let Some(number) = number else { continue };
            let field = format!("spec.ports[{index}].nodePort");
            if !mine.insert((*number, protocol.clone())) {
                faults.push(FieldError::duplicate(field, &(*number).into()));
            } else if used.contains(number) {
                let detail = "provided port is already allocated";
                faults.push(FieldError::invalid(field, &(*number).into(), detail));
            } else if !self.range.ports.contains(number) && !before.contains(number) {
                faults.push(FieldError::invalid(field, &(*number).into(), &out_of_range(self.range)));
            }
        }
        for (number, _) in &mine {
            used.insert(*number);
        }
        let mut chosen = Vec::new();
        for (index, (number, protocol)) in asked.iter().enumerate() {
            if number.is_some() || !wanted {
                continue;
            }
            // TCP and UDP of one service port share the node port, as upstream does.
            let port_of = |index: usize| {
                list(service, &["spec", "ports"])
                    .get(index)
                    .and_then(|port| integer(port, &["port"]))
            };
            let twin = chosen
                .iter()
                .find(|(other, _, other_protocol): &&(usize, u16, String)| {
                    port_of(*other) == port_of(index) && other_protocol != protocol
                });
            let number = twin
                .map(|(_, number, _)| *number)
                .or_else(|| free_port(self.range, &used, self.random));
            let Some(number) = number else {
                let text = "failed to allocate a nodePort: range is full";
                faults.push(FieldError::invalid(
                    format!("spec.ports[{index}].nodePort"),
                    &0.into(),
                    text,
                ));
                return;
            };
            used.insert(number);
            chosen.push((index, number, protocol.clone()));
        }
        for (index, number, _) in chosen {
            let port = service.get_mut("spec").and_then(|spec| spec.get_mut("ports"));
            if let Some(port) = port.and_then(|ports| ports.get_mut(index)) {
                object::set(port, &["nodePort"], number);
            }
        }
        if health {
            self.health_port(&used, &before, service, faults);
        }
    }

    fn health_port(
        &self,
        used: &BTreeSet<u16>,
        before: &BTreeSet<u16>,
        service: &mut Value,
        faults: &mut Vec<FieldError>,
    ) {
        const FIELD: &str = "spec.healthCheckNodePort";
        let asked = integer(service, &["spec", "healthCheckNodePort"]).unwrap_or(0);
        let mut refuse = |detail: &str| faults.push(FieldError::invalid(FIELD, &asked.into(), detail));
        if asked == 0 {
            match free_port(self.range, used, self.random) {
                Some(number) => object::set(service, &["spec", "healthCheckNodePort"], number),
                None => refuse("failed to allocate a nodePort: range is full"),
            }
            return;
        }
        match u16::try_from(asked) {
            Ok(number) if used.contains(&number) => refuse("provided port is already allocated"),
            Ok(number) if self.range.ports.contains(&number) || before.contains(&number) => {}
            Ok(_) | Err(_) => refuse(&out_of_range(self.range)),
        }
    }
}

/// A free address from a random place on; the reserved ones last.
fn free_address(range: &ServiceRange, taken: &BTreeSet<Ipv4Addr>, random: [u8; 16]) -> Option<Ipv4Addr> {
    let (base, last) = (range.base(), range.size().saturating_sub(2));
    let first = range.reserved() + 1;
    let free = |offset: u32| {
        let address = Ipv4Addr::from(base + offset);
        (!taken.contains(&address)).then_some(address)
    };
    let start = first + number(random) % last.saturating_sub(first).max(1);
    (start..=last)
        .chain(first..start)
        .find_map(free)
        .or_else(|| (1..first).find_map(free))
}

fn out_of_range(range: &ServiceRange) -> String {
    format!(
        "provided port is not in the valid range. The range of valid ports is {}-{}",
        range.ports.start(),
        range.ports.end()
    )
}

fn free_port(range: &ServiceRange, used: &BTreeSet<u16>, random: [u8; 16]) -> Option<u16> {
    let count = u32::from(*range.ports.end() - *range.ports.start()) + 1;
    let start = u16::try_from(number(random) % count).unwrap_or(0) + *range.ports.start();
    (start..=*range.ports.end())
        .chain(*range.ports.start()..start)
        .find(|port| !used.contains(port))
}

fn number(random: [u8; 16]) -> u32 {
    let [a, b, c, d, ..] = random;
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(taken: &Taken, service: Value) -> (Value, Vec<FieldError>) {
        let (mut service, mut faults) = (service, Vec::new());
        let choice = Choice {
            range: &ServiceRange::default(),
            taken,
            old: None,
            random: [7; 16],
        };
        choice.fill(&mut service, &mut faults);
        (service, faults)
    }

    #[test]
    fn addresses_are_unique_in_range_and_above_the_reserved_ones() {
        let range = ServiceRange::default();
        let mut taken = BTreeSet::new();
        for seed in 0..200_u8 {
            let address = free_address(&range, &taken, [seed; 16]).unwrap();
            assert!(
                range.holds(address) && u32::from(address) - range.base() > 256,
                "{address}"
            );
            assert!(taken.insert(address), "{address} twice");
        }
    }

    #[test]
    fn a_full_range_gives_its_reserved_addresses_last_and_then_nothing() {
        let range = ServiceRange {
            bits: 29,
            ..ServiceRange::default()
        };
        let mut taken = BTreeSet::new();
        while let Some(address) = free_address(&range, &taken, [9; 16]) {
            taken.insert(address);
        }
        assert_eq!(taken.len(), 6);
    }

    #[test]
    fn a_wish_is_granted_or_refused_with_upstreams_words() {
        let mut taken = Taken::default();
        taken.addresses.insert(Ipv4Addr::new(10, 43, 0, 10));
        for (ip, text) in [
            ("10.43.0.11", ""),
            (
                "10.43.0.10",
                "Invalid value: [\"10.43.0.10\"]: failed to allocate IP 10.43.0.10: provided IP is already allocated",
            ),
            (
                "fd00::1",
                "Invalid value: [\"fd00::1\"]: failed to allocate IP fd00::1: the provided IP (fd00::1) is not in the valid range. The range of valid IPs is 10.43.0.0/16",
            ),
            (
                "10.44.0.1",
                "Invalid value: [\"10.44.0.1\"]: failed to allocate IP 10.44.0.1: the provided IP (10.44.0.1) is not in the valid range. The range of valid IPs is 10.43.0.0/16",
            ),
        ] {
            let (_, faults) = filled(
                &taken,
                json!({"spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}}),
            );
            assert_eq!(faults.first().map_or("", |fault| fault.text.as_str()), text, "{ip}");
        }
    }

    #[test]
    fn node_ports_are_given_to_those_who_ask_for_none() {
        let (service, faults) = filled(
            &Taken::default(),
            json!({"spec": {"type": "NodePort", "ports": [{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80, "nodePort": 31000, "protocol": "TCP"}]}}),
        );
        assert_eq!(faults, []);
        let ports: Vec<i64> = list(&service, &["spec", "ports"])
            .iter()
            .map(|port| port["nodePort"].as_i64().unwrap())
            .collect();
        assert_eq!((ports[0], ports[2]), (ports[1], 31000));
        assert!((30_000..=32_767).contains(&ports[0]) && ports[0] != 31000);
        let mut taken = Taken::default();
        taken.ports.insert(31000);
        let (_, faults) = filled(
            &taken,
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 31000}, {"port": 81, "nodePort": 99}]}}),
        );
        let texts: Vec<&str> = faults.iter().map(|fault| fault.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "Invalid value: 31000: provided port is already allocated",
                "Invalid value: 99: provided port is not in the valid range. The range of valid ports is 30000-32767"
            ]
        );
    }

    #[test]
    fn the_port_of_a_health_check_is_as_unique_as_any_other() {
        let mut taken = Taken::default();
        taken.ports.insert(31000);
        let balanced = |port: i64| {
            json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
                "ports": [{"port": 80, "nodePort": 31001}]}})
        };
        let (chosen, faults) = filled(&taken, balanced(0));
        assert_eq!(faults, []);
        let chosen = integer(&chosen, &["spec", "healthCheckNodePort"]).unwrap();
        assert!((30_000..=32_767).contains(&chosen) && ![31000, 31001].contains(&chosen));
        for (port, text) in [
            (31002, ""),
            (31000, "Invalid value: 31000: provided port is already allocated"),
            (31001, "Invalid value: 31001: provided port is already allocated"),
            (
                99,
                "Invalid value: 99: provided port is not in the valid range. The range of valid ports is 30000-32767",
            ),
        ] {
            let (_, faults) = filled(&taken, balanced(port));
            assert_eq!(faults.first().map_or("", |fault| fault.text.as_str()), text, "{port}");
        }
    }

    #[test]
    fn headless_and_external_services_get_nothing() {
        for spec in [
            json!({"type": "ClusterIP", "clusterIP": "None"}),
            json!({"type": "ExternalName"}),
        ] {
            let service = json!({ "spec": spec });
            assert_eq!(filled(&Taken::default(), service.clone()), (service, vec![]));
        }
    }
}
