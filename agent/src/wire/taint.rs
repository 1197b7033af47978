//! Taints of nodes and tolerations of pods: who may be where, and for how long.
//!
//! Source: Kubernetes v1.36 `k8s.io/api/core/v1` `Toleration.ToleratesTaint`, `pkg/controller/tainteviction`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::object::list;

/// `spec.taints[]` of a node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Taint {
    /// `node.kubernetes.io/unreachable`.
    pub key: String,
    /// May be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// RFC 3339; of `NoExecute` taints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

/// `spec.tolerations[]` of a pod.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Toleration {
    /// Empty with `Exists`: every key.
    pub key: String,
    /// `Equal` (or empty) or `Exists`.
    pub operator: String,
    /// Compared when the operator is `Equal`.
    pub value: String,
    /// Empty: every effect.
    pub effect: String,
    /// How long a `NoExecute` taint is borne; `None`: for ever.
    pub toleration_seconds: Option<i64>,
}

impl Taint {
    /// The taints of a node, unreadable ones left out.
    pub fn of_node(node: &Value) -> Vec<Self> {
        read(list(node, &["spec", "taints"]))
    }

    /// Same key and effect: there is at most one such on a node.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.key == other.key && self.effect == other.effect
    }
}

impl Toleration {
    /// The tolerations of a pod, unreadable ones left out.
    pub fn of_pod(pod: &Value) -> Vec<Self> {
        read(list(pod, &["spec", "tolerations"]))
    }

    /// Whether this bears that.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key.is_empty() || self.key == taint.key;
        effect
            && key
            && match self.operator.as_str() {
                "" | "Equal" => self.value == taint.value,
                "Exists" => true,
                _ => false,
            }
    }
}

/// How long a pod may stay where `NoExecute` taints are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stay {
    /// For ever.
    Always,
    /// So long from when the taints came.
    For(Duration),
    /// It has to go now.
    No,
}

/// The shortest stay that the `NoExecute` taints among these leave.
pub fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut shortest: Option<Duration> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let mut borne = tolerations.iter().filter(|one| one.tolerates(taint)).peekable();
        if borne.peek().is_none() {
            return Stay::No;
        }
        for seconds in borne.filter_map(|one| one.toleration_seconds) {
            let stay = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            shortest = Some(shortest.map_or(stay, |known| known.min(stay)));
        }
    }
    match shortest {
        Some(Duration::ZERO) => Stay::No,
        Some(time) => Stay::For(time),
        None => Stay::Always,
    }
}

fn read<T: for<'a> Deserialize<'a>>(values: &[Value]) -> Vec<T> {
    values.iter().filter_map(|value| T::deserialize(value).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: value.into(),
            effect: effect.into(),
            time_added: None,
        }
    }

    #[test]
    fn a_toleration_bears_what_its_operator_says() {
        for (toleration, wanted) in [
            (json!({"key": "a", "value": "1", "effect": "NoSchedule"}), true),
            (json!({"key": "a", "operator": "Equal", "value": "2"}), false),
            (json!({"key": "a", "operator": "Exists"}), true),
            (json!({"key": "b", "operator": "Exists"}), false),
            (json!({"operator": "Exists"}), true),
            (json!({"operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "a", "operator": "Unknown", "value": "1"}), false),
        ] {
            let read = Toleration::deserialize(&toleration).unwrap();
            assert_eq!(read.tolerates(&taint("a", "1", "NoSchedule")), wanted, "{toleration}");
        }
    }

    #[test]
    fn the_shortest_toleration_counts_and_a_missing_one_ends_the_stay() {
        let taints = [taint("a", "", "NoExecute"), taint("b", "", "NoSchedule")];
        let seconds = |seconds: Option<i64>| Toleration {
            key: "a".into(),
            operator: "Exists".into(),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        for (tolerations, wanted) in [
            (vec![], Stay::No),
            (vec![seconds(None)], Stay::Always),
            (
                vec![seconds(Some(300)), seconds(Some(20))],
                Stay::For(Duration::from_secs(20)),
            ),
            (vec![seconds(Some(0))], Stay::No),
            (vec![seconds(Some(-5))], Stay::No),
        ] {
            assert_eq!(stay(&taints, &tolerations), wanted, "{tolerations:?}");
        }
    }
}
