//! What the parts of a server are told, worked out from its configuration. Pure.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, anyhow};

use super::address::Addresses;
use crate::config::{Config, nth};
use crate::join::passwd::Given;
use crate::join::pki::Names;
use crate::registry::{ServiceRange, Settings};

pub(super) fn names(config: &Config, own: &Addresses) -> Names {
    Names {
        node: config.node.name.clone(),
        addresses: own.all(),
        cluster_domain: config.cluster.cluster_domain.clone(),
        service: first_service(config).ok(),
        extra: config.tls_sans.clone(),
        stays: Some(own.stays(config.tls_san_security)),
        any_name: !config.tls_san_security,
        ..Names::default()
    }
}

pub(super) fn given(config: &Config) -> Given {
    Given {
        token: config.token.clone(),
        agent_token: config.agent_token.clone(),
    }
}

/// What agents are told. `psk`: 96 hex digits, the same on all servers of a cluster.
pub(super) fn cluster_settings(config: &Config, port: u16, psk: &str) -> agent::wire::join::ClusterConfig {
    agent::wire::join::ClusterConfig {
        ipsec_psk: psk.to_owned(),
        https_port: port,
        supervisor_port: port,
        api_server_port: port.saturating_add(1),
        ..config.cluster.clone()
    }
}

pub(super) fn settings(config: &Config) -> anyhow::Result<Settings> {
    let (network, bits) = range_v4(config.cluster.service_cidrs.first(), "--service-cidr")?;
    let base = config.cluster.node_port_base;
    let ports = base..=base.saturating_add(config.cluster.node_port_size.saturating_sub(1));
    Ok(Settings {
        services: ServiceRange { network, bits, ports },
        ..Settings::default()
    })
}

pub(super) fn pod_range(config: &Config) -> anyhow::Result<(Ipv4Addr, u8)> {
    range_v4(config.cluster.cluster_cidrs.first(), "--cluster-cidr")
}

fn range_v4(range: Option<&agent::wire::join::Cidr>, flag: &str) -> anyhow::Result<(Ipv4Addr, u8)> {
    match range {
        Some(agent::wire::join::Cidr {
            address: IpAddr::V4(first),
            prefix,
        }) => Ok((*first, *prefix)),
        _ => Err(anyhow!(
            "{flag}: the first range has to be of IPv4 addresses, such as 10.42.0.0/16"
        )),
    }
}

pub(super) fn first_service(config: &Config) -> anyhow::Result<IpAddr> {
    let range = config.cluster.service_cidrs.first().copied();
    range
        .and_then(|range| nth(range, 1))
        .context("--service-cidr: the range is too small")
}
