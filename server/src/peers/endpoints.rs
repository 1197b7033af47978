//! Where the API is: the endpoints of the `kubernetes` service in `default`, for pods and for agents.
//!
//! [`wanted`] says what the objects are to be for a set of servers (pure); [`reconcile`] brings them there, by whichever
//! server comes first. Servers that listen on different ports, or have addresses of different families, need a slice
//! each. Source: Kubernetes v1.36 `pkg/controlplane/reconcilers/endpointsadapter.go` and `lease.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use agent::wire::object::{list, text};
use agent::wire::selector::Labels;
use agent::wire::status::{Reason, Status};
use serde_json::{Value, json};

use crate::cache::Filter;
use crate::request::{Client, DeleteOptions, What};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Whose change it was comes first; a change that loses so often against others is looked at again later.
const ATTEMPTS: usize = 5;

/// The Endpoints object, and the slices by name.
struct Wanted {
    endpoints: Value,
    slices: BTreeMap<String, Value>,
}

/// Makes the endpoints say that these are the servers; what says so already is not written. An empty set is not written
/// at all: then nobody would find the way back.
///
/// # Errors
/// What the API says; another server that does the same at the same time is none.
pub async fn reconcile(client: &Client, servers: &BTreeSet<SocketAddr>) -> Result<(), Status> {
    if servers.is_empty() {
        return Ok(());
    }
    let Wanted { endpoints, slices } = wanted(servers);
    bring(client, What::ENDPOINTS, NAME, &endpoints, &["subsets"]).await?;
    for (name, slice) in &slices {
        bring(client, What::ENDPOINT_SLICES, name, slice, &["endpoints", "ports"]).await?;
    }
    remove_others(client, &slices).await
}

/// The servers that the endpoints name now.
///
/// # Errors
/// What the API says; that there are no endpoints is none.
pub async fn present(client: &Client) -> Result<BTreeSet<SocketAddr>, Status> {
    match client.get(What::ENDPOINTS, NAMESPACE, NAME).await {
        Ok(endpoints) => Ok(addresses(&endpoints)),
        Err(status) if status.is(Reason::NotFound) => Ok(BTreeSet::new()),
        Err(status) => Err(status),
    }
}

fn addresses(endpoints: &Value) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for subset in list(endpoints, &["subsets"]) {
        let ports = list(subset, &["ports"])
            .iter()
            .filter_map(|port| port.get("port")?.as_u64());
        let Some(port) = ports.filter_map(|port| u16::try_from(port).ok()).next() else {
            continue;
        };
        let addresses = list(subset, &["addresses"]).iter();
        let addresses = addresses.filter_map(|address| text(address, &["ip"]).parse().ok());
        found.extend(addresses.map(|ip: IpAddr| SocketAddr::new(ip, port)));
    }
    found
}

fn wanted(servers: &BTreeSet<SocketAddr>) -> Wanted {
    let mut by_port: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    let mut by_slice: BTreeMap<(u16, bool), Vec<IpAddr>> = BTreeMap::new();
    for server in servers {
        by_port.entry(server.port()).or_default().push(server.ip());
        let slice = (server.port(), server.is_ipv6());
        by_slice.entry(slice).or_default().push(server.ip());
    }
    let port = |port: u16| json!([{ "name": "https", "port": port, "protocol": "TCP" }]);
    let subset = |(number, ips): (u16, Vec<IpAddr>)| {
        let addresses: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        json!({ "addresses": addresses, "ports": port(number) })
    };
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": { "name": NAME, "namespace": NAMESPACE,
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": by_port.into_iter().map(subset).collect::<Vec<_>>(),
    });
    let slice = |(index, ((number, v6), ips)): (usize, ((u16, bool), Vec<IpAddr>))| {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let name = match index {
            0 => NAME.to_owned(),
            _ => format!("{NAME}-{}-{number}", family.to_lowercase()),
        };
        let endpoint = |ip: &IpAddr| json!({ "addresses": [ip.to_string()], "conditions": { "ready": true } });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": NAME } },
            "addressType": family,
            "endpoints": ips.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": port(number),
        });
        (name, slice)
    };
    let slices = by_slice.into_iter().enumerate().map(slice).collect();
    Wanted { endpoints, slices }
}

/// Makes an object, or brings these members of it to what is wanted; people's labels and annotations stay.
async fn bring(client: &Client, what: What, name: &str, wanted: &Value, members: &[&str]) -> Result<(), Status> {
    for _ in 0..ATTEMPTS {
        let answer = match client.get(what, NAMESPACE, name).await {
            Err(status) if status.is(Reason::NotFound) => client.create(what, NAMESPACE, wanted.clone()).await,
            Err(status) => return Err(status),
            Ok(present) if present.get("addressType") != wanted.get("addressType") => {
                // That member never changes in an object's life.
                client.delete(what, NAMESPACE, name, DeleteOptions::default()).await?;
                continue;
            }
            Ok(mut present) => {
                if members.iter().all(|member| present.get(member) == wanted.get(member)) {
                    return Ok(());
                }
                for member in members {
                    if let (Some(present), Some(value)) = (present.as_object_mut(), wanted.get(member)) {
                        present.insert((*member).to_owned(), value.clone());
                    }
                }
                client.update(what, NAMESPACE, name, present).await
            }
        };
        match answer {
            Err(status) if raced(&status) => {}
            other => return other.map(drop),
        }
    }
    Ok(())
}

/// Removes the slices that the servers of before needed.
async fn remove_others(client: &Client, wanted: &BTreeMap<String, Value>) -> Result<(), Status> {
    let Ok(labels) = Labels::parse(&format!("kubernetes.io/service-name={NAME}")) else {
        return Ok(());
    };
    let filter = Filter {
        labels,
        ..Filter::default()
    };
    let page = client.list(What::ENDPOINT_SLICES, Some(NAMESPACE), filter).await?;
    for item in page.items {
        let slice = item.value();
        let name = text(&slice, &["metadata", "name"]);
        if wanted.contains_key(name) || !name.starts_with("kubernetes-ipv") {
            continue;
        }
        let gone = client.delete(What::ENDPOINT_SLICES, NAMESPACE, name, DeleteOptions::default());
        match gone.await {
            Err(status) if !raced(&status) => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// Another server did the same a moment before.
fn raced(status: &Status) -> bool {
    [Reason::Conflict, Reason::AlreadyExists, Reason::NotFound]
        .into_iter()
        .any(|reason| status.is(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(all: &[&str]) -> BTreeSet<SocketAddr> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_endpoints_name_every_server_once_and_in_order() {
        let all = servers(&["192.0.2.2:6443", "192.0.2.1:6443"]);
        let Wanted { endpoints, slices } = wanted(&all);
        assert_eq!(
            endpoints["subsets"],
            json!([{ "addresses": [{ "ip": "192.0.2.1" }, { "ip": "192.0.2.2" }],
                "ports": [{ "name": "https", "port": 6443, "protocol": "TCP" }] }])
        );
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes"]);
        assert_eq!(slices["kubernetes"]["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(addresses(&endpoints), all, "and are read back");
    }

    #[test]
    fn servers_are_read_from_the_endpoints() {
        let object = json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}],
            "ports": [{"name": "https", "port": 6443}]}, {"addresses": [{"ip": "192.0.2.3"}]}]});
        let found: Vec<_> = addresses(&object).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:6443", "[fd00::1]:6443"]);
        assert!(addresses(&json!({})).is_empty());
    }

    #[test]
    fn other_ports_and_families_have_slices_of_their_own() {
        let all = servers(&["192.0.2.1:6443", "192.0.2.2:7443", "[fd00::1]:6443"]);
        let Wanted { endpoints, slices } = wanted(&all);
        assert_eq!(
            slices.keys().collect::<Vec<_>>(),
            ["kubernetes", "kubernetes-ipv4-7443", "kubernetes-ipv6-6443"]
        );
        for slice in slices.values() {
            assert_eq!(slice["ports"].as_array().unwrap().len(), 1);
        }
        assert_eq!(addresses(&endpoints), all);
    }
}
