//! The files that every container finds in `/etc`: `hosts` and `resolv.conf`. Pure.
//!
//! Source: Kubernetes v1.36, `pkg/kubelet/kubelet_pods.go` `managedHostsFileContent`, `pkg/kubelet/network/dns`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::settings::Settings;
use crate::wire::pod::{DnsConfig, Pod};

/// The longest host name the kernel takes, and a DNS label.
const LONGEST_NAME: usize = 63;
/// What glibc and musl read at most.
const MOST_NAMESERVERS: usize = 3;

/// What `hostname` prints inside the pod, and `$HOSTNAME` and `/etc/hostname` say. `node` is the node's, which a pod on
/// the node's network shares.
///
/// Source: Kubernetes v1.36, `pkg/kubelet/kubelet_pods.go` `GeneratePodHostNameAndDomain`, `kuberuntime` on host network.
pub fn hostname(pod: &Pod, node: &str) -> String {
    let name = match pod.spec.hostname.as_str() {
        _ if pod.spec.host_network => node,
        "" => pod.meta.name.as_str(),
        name => name,
    };
    let cut = name.get(..LONGEST_NAME).unwrap_or(name);
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `/etc/hosts`. `own` is the node's file, for pods on the node's network.
pub fn hosts(pod: &Pod, ip: Option<IpAddr>, domain: &str, own: &str) -> String {
    let mut text = if pod.spec.host_network {
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        let name = hostname(pod, ""); // not on the node's network
        let names = match pod.spec.subdomain.as_str() {
            "" => name,
            sub => format!("{name}.{sub}.{}.svc.{domain}\t{name}", pod.meta.namespace),
        };
        let line = ip.map(|ip| format!("{ip}\t{names}\n")).unwrap_or_default();
        format!(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n{line}"
        )
    };
    if !pod.spec.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in &pod.spec.host_aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
        }
    }
    text
}

/// `/etc/resolv.conf`. `own` is the node's file.
pub fn resolv_conf(pod: &Pod, settings: &Settings, own: &str) -> String {
    let policy = match (pod.spec.dns_policy.as_str(), pod.spec.host_network) {
        ("ClusterFirst" | "", true) => "Default",
        ("ClusterFirst" | "ClusterFirstWithHostNet" | "", _) if settings.cluster_dns.is_empty() => "Default",
        ("", false) => "ClusterFirst",
        (policy, _) => policy,
    };
    let mut conf = match policy {
        "None" => Conf::default(),
        "Default" => Conf::parse(own),
        _ => Conf::cluster(pod, settings, own),
    };
    if let Some(wanted) = &pod.spec.dns_config {
        conf.merge(wanted);
    }
    conf.text()
}

#[derive(Debug, Default)]
struct Conf {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: BTreeMap<String, Option<String>>,
}

impl Conf {
    fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => conf.nameservers.extend(words.next()),
                Some("search") => conf.searches = words.collect(), // the last one counts
                Some("options") => conf.options.extend(words.map(|word| option(&word))),
                _ => {}
            }
        }
        conf
    }

    fn cluster(pod: &Pod, settings: &Settings, own: &str) -> Self {
        let (namespace, domain) = (&pod.meta.namespace, &settings.cluster_domain);
        let mut searches = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        for search in Self::parse(own).searches {
            if !searches.contains(&search) {
                searches.push(search);
            }
        }
        Self {
            nameservers: settings.cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: BTreeMap::from([("ndots".into(), Some("5".into()))]),
        }
    }

    fn merge(&mut self, wanted: &DnsConfig) {
        for (list, more) in [
            (&mut self.nameservers, &wanted.nameservers),
            (&mut self.searches, &wanted.searches),
        ] {
            for it in more {
                if !list.contains(it) {
                    list.push(it.clone());
                }
            }
        }
        let options = wanted.options.iter().map(|it| (it.name.clone(), it.value.clone()));
        self.options.extend(options);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in self.nameservers.iter().take(MOST_NAMESERVERS) {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            let one = |(name, value): (&String, &Option<String>)| match value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            };
            let all: Vec<String> = self.options.iter().map(one).collect();
            text.push_str(&format!("options {}\n", all.join(" ")));
        }
        text
    }
}

fn option(word: &str) -> (String, Option<String>) {
    match word.split_once(':') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        Pod::of(&json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": spec})).unwrap()
    }

    const OWN: &str = "search lan\nnameserver 192.0.2.1\noptions timeout:1 rotate\n";

    #[test]
    fn names_are_looked_up_where_the_policy_says() {
        let settings = Settings {
            cluster_dns: vec![[10, 43, 0, 10].into()],
            ..Settings::new("pi", Path::new("/d"))
        };
        let cluster =
            "search ns.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5\n";
        let own = "search lan\nnameserver 192.0.2.1\noptions rotate timeout:1\n";
        let config = json!({"nameservers": ["192.0.2.9"], "options": [{"name": "ndots", "value": "2"}]});
        for (spec, expected) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "Default"}), own),
            (json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"}), own),
            (
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                cluster,
            ),
            (
                json!({"dnsPolicy": "None", "dnsConfig": config}),
                "nameserver 192.0.2.9\noptions ndots:2\n",
            ),
        ] {
            assert_eq!(resolv_conf(&pod(spec.clone()), &settings, OWN), expected, "{spec}");
        }
        let dnsless = Settings::new("pi", Path::new("/d"));
        assert_eq!(resolv_conf(&pod(json!({})), &dnsless, OWN), own, "no cluster DNS");
    }

    #[test]
    fn a_pod_finds_itself_and_its_aliases_in_hosts() {
        let ip = Some(IpAddr::from([10, 42, 0, 5]));
        let plain = hosts(&pod(json!({})), ip, "cluster.local", "");
        assert!(plain.contains("127.0.0.1\tlocalhost\n") && plain.ends_with("10.42.0.5\tweb\n"));
        let full = pod(
            json!({"hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let full = hosts(&full, ip, "cluster.local", "");
        assert!(full.contains("10.42.0.5\th.s.ns.svc.cluster.local\th\n"));
        assert!(full.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let host = hosts(&pod(json!({"hostNetwork": true})), ip, "cluster.local", "1.1.1.1 one\n");
        assert_eq!(host, "# Kubernetes-managed hosts file (host network).\n1.1.1.1 one\n");
    }

    #[test]
    fn host_names_fit_the_kernel() {
        let mut long = pod(json!({}));
        long.meta.name = format!("{}-b", "a".repeat(62));
        assert_eq!(hostname(&long, "pi"), "a".repeat(62));
        let mut on_host = long;
        on_host.spec.host_network = true;
        assert_eq!(hostname(&on_host, "pi"), "pi");
    }
}
