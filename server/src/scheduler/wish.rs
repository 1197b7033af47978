//! What a pod needs of a node, read once from its spec.

use std::collections::BTreeMap;

use agent::wire::object::{Meta, at, integer, list, text};
use agent::wire::pod::quantity;
use agent::wire::selector::{Expression, expression_holds};
use agent::wire::taint::Toleration;
use serde::Deserialize;
use serde_json::Value;

/// Amounts by resource name: CPU in thousandths of a core, all else in whole units.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// Reads a resource list.
    pub fn read(value: Option<&Value>) -> Self {
        let entries = value.and_then(Value::as_object).into_iter().flatten();
        let amount = |(name, value): (&String, &Value)| {
            let quantity = quantity(value)?;
            let units = if name == "cpu" {
                quantity.milli_value()
            } else {
                quantity.value()
            };
            Some((name.clone(), units))
        };
        Self(entries.filter_map(amount).collect())
    }

    /// How much of a resource.
    pub fn of(&self, resource: &str) -> i64 {
        self.0.get(resource).copied().unwrap_or(0)
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        self.merge(other, i64::saturating_add);
    }

    /// Takes all of `other` away.
    pub fn subtract(&mut self, other: &Self) {
        self.merge(other, i64::saturating_sub);
    }

    /// Raises each resource to what `other` has of it.
    pub fn at_least(&mut self, other: &Self) {
        self.merge(other, i64::max);
    }

    fn merge(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }
}

/// A port of the node that a pod occupies. An empty address means all of them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HostPort {
    /// Number.
    pub port: i64,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Address, or empty.
    pub address: String,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn collides(&self, other: &Self) -> bool {
        let same_address = self.address == other.address || self.address.is_empty() || other.address.is_empty();
        self.port == other.port && self.protocol == other.protocol && same_address
    }
}

/// One term of a node affinity: all of its expressions must hold.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Term {
    /// About labels.
    pub match_expressions: Vec<Expression>,
    /// About `metadata.name`.
    pub match_fields: Vec<Expression>,
}

impl Term {
    /// Whether a node with these labels and this name is meant. A term without expressions means no node.
    pub fn matches(&self, labels: &BTreeMap<String, String>, name: &str) -> bool {
        let label = |one: &Expression| holds(one, labels.get(&one.key).map(String::as_str));
        let field = |one: &Expression| holds(one, (one.key == "metadata.name").then_some(name));
        let empty = self.match_expressions.is_empty() && self.match_fields.is_empty();
        !empty && self.match_expressions.iter().all(label) && self.match_fields.iter().all(field)
    }
}

fn holds(expression: &Expression, value: Option<&str>) -> bool {
    expression_holds(expression, value).unwrap_or(false)
}

/// What a pod needs and what it would like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// Name, namespace, uid.
    pub meta: Meta,
    /// Where it is, once it is somewhere.
    pub node: String,
    /// Has ended: it needs nothing any more.
    pub finished: bool,
    /// Whose turn: higher first.
    pub priority: i64,
    /// What it occupies.
    pub requests: Amounts,
    /// What it is taken to use when nodes are compared: pods without requests are not free.
    pub weight: Amounts,
    /// Taints it bears.
    pub tolerations: Vec<Toleration>,
    /// Labels the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// One of these must match; `None`: no such demand.
    pub required: Option<Vec<Term>>,
    /// These would be nice, by weight.
    pub preferred: Vec<(i64, Term)>,
    /// Ports of the node.
    pub ports: Vec<HostPort>,
    /// Uid of what manages it: its siblings are better elsewhere.
    pub owner: Option<String>,
    /// A demand this scheduler cannot meet yet, in words.
    pub unsupported: Option<&'static str>,
    /// Held back, or another scheduler's.
    pub not_ours: bool,
}

impl Wish {
    /// Reads a pod.
    pub fn of(pod: &Value) -> Self {
        let meta = Meta::of(pod);
        let phase = text(pod, &["status", "phase"]);
        let affinity = at(pod, &["spec", "affinity", "nodeAffinity"]);
        let preferred = affinity.map_or(&[][..], |one| {
            list(one, &["preferredDuringSchedulingIgnoredDuringExecution"])
        });
        let requests = requests(pod, &Amounts::default());
        Self {
            node: text(pod, &["spec", "nodeName"]).to_owned(),
            finished: matches!(phase, "Succeeded" | "Failed"),
            priority: integer(pod, &["spec", "priority"]).unwrap_or(0),
            weight: requests_for_comparison(pod),
            requests,
            tolerations: Toleration::of_pod(pod),
            node_selector: at(pod, &["spec", "nodeSelector"])
                .and_then(|selector| BTreeMap::deserialize(selector).ok())
                .unwrap_or_default(),
            required: affinity.and_then(required_terms),
            preferred: preferred
                .iter()
                .filter_map(|one| {
                    Some((
                        integer(one, &["weight"])?,
                        Term::deserialize(one.get("preference")?).ok()?,
                    ))
                })
                .collect(),
            ports: host_ports(pod),
            owner: meta.controller().map(|owner| owner.uid.clone()),
            unsupported: unsupported(pod),
            not_ours: not_ours(pod),
            meta,
        }
    }

    /// Whether both ask the same of a node, whatever else is said of the pods.
    pub fn needs_what(&self, other: &Self) -> bool {
        let rest = |wish: &Self| Self {
            meta: Meta::default(),
            ..wish.clone()
        };
        rest(self) == rest(other)
    }

    /// Whether this scheduler has to find it a node.
    pub fn waits(&self) -> bool {
        self.node.is_empty() && !self.finished && !self.not_ours && self.meta.deletion_timestamp.is_none()
    }
}

fn not_ours(pod: &Value) -> bool {
    let scheduler = text(pod, &["spec", "schedulerName"]);
    !matches!(scheduler, "" | super::NAME) || !list(pod, &["spec", "schedulingGates"]).is_empty()
}

fn required_terms(affinity: &Value) -> Option<Vec<Term>> {
    let required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")?;
    let terms = list(required, &["nodeSelectorTerms"]);
    Some(terms.iter().filter_map(|term| Term::deserialize(term).ok()).collect())
}

/// What would be wrong to leave out silently.
fn unsupported(pod: &Value) -> Option<&'static str> {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let demands = |path: &[&str]| !list(pod, path).is_empty();
    let spread = list(pod, &["spec", "topologySpreadConstraints"]);
    if demands(&["spec", "affinity", "podAffinity", REQUIRED]) {
        Some("required pod affinity is not supported yet")
    } else if demands(&["spec", "affinity", "podAntiAffinity", REQUIRED]) {
        Some("required pod anti-affinity is not supported yet")
    } else if spread
        .iter()
        .any(|one| text(one, &["whenUnsatisfiable"]) == "DoNotSchedule")
    {
        Some("topology spread with DoNotSchedule is not supported yet")
    } else {
        None
    }
}

/// The most that is needed at one time: all containers and sidecars together, or one init container with the sidecars
/// before it; and the overhead of the sandbox.
///
/// Source: Kubernetes v1.36 `k8s.io/component-helpers/resource.PodRequests`.
fn requests(pod: &Value, defaults: &Amounts) -> Amounts {
    let of = |container: &Value| {
        let mut amounts = defaults.clone();
        let given = Amounts::read(at(container, &["resources", "requests"]));
        amounts.0.extend(given.0);
        amounts
    };
    let mut total = Amounts::default();
    for container in list(pod, &["spec", "containers"]) {
        total.add(&of(container));
    }
    let mut sidecars = Amounts::default();
    let mut starting = Amounts::default();
    for container in list(pod, &["spec", "initContainers"]) {
        let mut now = of(container);
        if text(container, &["restartPolicy"]) == "Always" {
            sidecars.add(&now);
            starting.at_least(&sidecars);
        } else {
            now.add(&sidecars);
            starting.at_least(&now);
        }
    }
    total.add(&sidecars);
    total.at_least(&starting);
    total.add(&Amounts::read(at(pod, &["spec", "overhead"])));
    total
}

/// Source: Kubernetes v1.36 `pkg/scheduler/util.DefaultMilliCPURequest`, `DefaultMemoryRequest`.
fn requests_for_comparison(pod: &Value) -> Amounts {
    let defaults = [("cpu".to_owned(), 100), ("memory".to_owned(), 200 * 1024 * 1024)];
    requests(pod, &Amounts(defaults.into()))
}

fn host_ports(pod: &Value) -> Vec<HostPort> {
    let containers = list(pod, &["spec", "containers"]).iter();
    let ports = containers.flat_map(|container| list(container, &["ports"]));
    let taken = |port: &Value| {
        let number = integer(port, &["hostPort"]).filter(|number| *number > 0)?;
        let protocol = text(port, &["protocol"]);
        let address = text(port, &["hostIP"]);
        Some(HostPort {
            port: number,
            protocol: if protocol.is_empty() { "TCP" } else { protocol }.to_owned(),
            address: if address == "0.0.0.0" { "" } else { address }.to_owned(),
        })
    };
    ports.filter_map(taken).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_needs_the_most_it_uses_at_one_time() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = json!("Always");
        for (containers, inits, cpu) in [
            (json!([container("100m"), container("1")]), json!([]), 1100),
            (json!([container("100m")]), json!([container("500m")]), 500),
            (json!([container("100m")]), json!([sidecar, container("500m")]), 700),
            (json!([container("600m")]), json!([container("500m"), sidecar]), 800),
        ] {
            let pod =
                json!({"spec": {"containers": containers, "initContainers": inits, "overhead": {"memory": "10Mi"}}});
            let wish = Wish::of(&pod);
            assert_eq!(wish.requests.of("cpu"), cpu, "{pod}");
            assert!(wish.requests.of("memory") > 10 * 1024 * 1024);
        }
    }

    #[test]
    fn a_term_matches_by_label_name_and_number() {
        let labels = BTreeMap::from([
            ("zone".to_owned(), "a".to_owned()),
            ("cores".to_owned(), "4".to_owned()),
        ]);
        let expression =
            |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
        for (labels_wanted, fields_wanted, matches) in [
            (vec![expression("zone", "In", &["a", "b"])], vec![], true),
            (vec![expression("zone", "NotIn", &["a"])], vec![], false),
            (vec![expression("cores", "Gt", &["3"])], vec![], true),
            (vec![expression("cores", "Lt", &["4"])], vec![], false),
            (vec![], vec![expression("metadata.name", "In", &["edge"])], true),
            (
                vec![expression("zone", "Exists", &[])],
                vec![expression("metadata.name", "In", &["other"])],
                false,
            ),
            (vec![], vec![], false),
        ] {
            let term = json!({"matchExpressions": labels_wanted, "matchFields": fields_wanted});
            let read = Term::deserialize(&term).unwrap();
            assert_eq!(read.matches(&labels, "edge"), matches, "{term}");
        }
    }

    #[test]
    fn only_pods_of_this_scheduler_that_have_no_node_wait() {
        for (pod, waits) in [
            (json!({"spec": {}}), true),
            (json!({"spec": {"nodeName": "edge"}}), false),
            (json!({"spec": {"schedulerName": "other"}}), false),
            (json!({"spec": {"schedulingGates": [{"name": "x"}]}}), false),
            (json!({"status": {"phase": "Failed"}}), false),
            (
                json!({"metadata": {"deletionTimestamp": "2026-11-25T12:00:00Z"}}),
                false,
            ),
        ] {
            assert_eq!(Wish::of(&pod).waits(), waits, "{pod}");
        }
    }
}
