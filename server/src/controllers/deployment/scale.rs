//! How many replicas each ReplicaSet of a Deployment gets: rolling from old to new, or resizing all.
//!
//! Source: Kubernetes v1.36 `pkg/controller/deployment/rolling.go`, `sync.go` (`scale`, `isScalingEvent`), and
//! `util/deployment_util.go` (`ResolveFenceposts`, `NewRSNewReplicas`).

use std::cmp::Reverse;

use agent::wire::object::{at, integer, text};
use serde_json::Value;

use super::super::action::Plan;
use super::super::world::Key;
use super::{DESIRED, MOST, replicas, scale_to};

/// The bounds of a rollout.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// `spec.replicas`.
    pub wanted: i64,
    /// Pods above that during a rollout.
    pub surge: i64,
    /// Pods below that during a rollout.
    pub unavailable: i64,
}

impl Limits {
    /// Reads them off a Deployment.
    pub fn of(deployment: &Value) -> Self {
        let wanted = replicas(deployment);
        let rolling = at(deployment, &["spec", "strategy", "rollingUpdate"]);
        if text(deployment, &["spec", "strategy", "type"]) == "Recreate" {
            return Self {
                wanted,
                surge: 0,
                unavailable: 0,
            };
        }
        let surge = share(rolling.and_then(|one| one.get("maxSurge")), wanted, true);
        let unavailable = share(rolling.and_then(|one| one.get("maxUnavailable")), wanted, false).min(wanted);
        // Both zero would never move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self {
            wanted,
            surge,
            unavailable,
        }
    }

    /// The most pods there may be.
    pub const fn most(self) -> i64 {
        if self.wanted == 0 { 0 } else { self.wanted + self.surge }
    }
}

/// A number, or a percentage of `whole` rounded up (`maxSurge`) or down (`maxUnavailable`). Default 25 %.
fn share(value: Option<&Value>, whole: i64, up: bool) -> i64 {
    let percent = match value {
        Some(Value::Number(number)) => return number.as_i64().unwrap_or(0).max(0),
        Some(Value::String(text)) => text
            .strip_suffix('%')
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(25),
        _ => 25_i64,
    };
    let hundredfold = whole.saturating_mul(percent.clamp(0, 100_000));
    if up {
        hundredfold.saturating_add(99) / 100
    } else {
        hundredfold / 100
    }
}

/// One step of a rolling update: the new set up as far as the surge allows, else old ones down as far as stay available.
pub fn roll(plan: &mut Plan, deployment: &Value, new: &Value, old: &[Value], limits: Limits) {
    let total: i64 = replicas(new) + old.iter().map(replicas).sum::<i64>();
    let target = match replicas(new) {
        now if now >= limits.wanted => limits.wanted,
        now => now + (limits.most() - total).clamp(0, limits.wanted - now),
    };
    if target != replicas(new) {
        scale_to(plan, deployment, new, target);
        return; // the cache shows it before the next pass, which then looks at the old ones
    }
    scale_to(plan, deployment, new, target); // only notes the present size
    shrink(plan, deployment, new, old, limits, total);
}

fn shrink(plan: &mut Plan, deployment: &Value, new: &Value, old: &[Value], limits: Limits, total: i64) {
    let available = |one: &Value| integer(one, &["status", "availableReplicas"]).unwrap_or(0);
    let floor = limits.wanted - limits.unavailable;
    let new_missing = replicas(new) - available(new);
    let mut may_go = total - floor - new_missing;
    if may_go <= 0 {
        return;
    }
    // Pods that are not available anyway go first, and count for nothing.
    let mut left: Vec<(&Value, i64)> = Vec::new();
    for one in old {
        let unhealthy = (replicas(one) - available(one)).clamp(0, may_go);
        may_go -= unhealthy;
        left.push((one, replicas(one) - unhealthy));
    }
    let available_now: i64 = available(new) + left.iter().map(|(one, size)| available(one).min(*size)).sum::<i64>();
    let mut healthy = (available_now - floor).max(0);
    for (one, size) in left {
        let down = size.clamp(0, healthy);
        healthy -= down;
        if size - down != replicas(one) {
            scale_to(plan, deployment, one, size - down);
        }
    }
}

/// To the nearest whole, halves up. Neither is negative.
const fn rounded(part: i64, whole: i64) -> i64 {
    part.saturating_mul(2).saturating_add(whole) / whole.saturating_mul(2)
}

/// Whether the Deployment's size changed since its sets were last sized.
pub fn is_scaling<'a>(deployment: &Value, sets: impl Iterator<Item = &'a Value>) -> bool {
    let wanted = replicas(deployment).to_string();
    let other = |one: &Value| {
        let noted = text(one, &["metadata", "annotations", DESIRED]);
        replicas(one) > 0 && !noted.is_empty() && noted != wanted
    };
    sets.into_iter().any(other)
}

/// Gives the Deployment's size to its sets: all to the only one that has pods (to the newest, if none has), or to each
/// its part of the change. Once the new set has all that is wanted, the older ones end instead.
pub fn resize(plan: &mut Plan, deployment: &Value, new: Option<&Value>, old: &[Value]) {
    let limits = Limits::of(deployment);
    let mut active: Vec<&Value> = new.into_iter().chain(old).filter(|one| replicas(one) > 0).collect();
    match (active.as_slice(), new) {
        ([], Some(new)) => scale_to(plan, deployment, new, limits.wanted),
        ([], None) => old
            .last()
            .into_iter()
            .for_each(|one| scale_to(plan, deployment, one, limits.wanted)),
        ([only], _) => scale_to(plan, deployment, only, limits.wanted),
        (_, Some(new)) if is_saturated(new, limits) => {
            let busy = old.iter().filter(|one| replicas(one) > 0);
            busy.for_each(|one| scale_to(plan, deployment, one, 0));
        }
        _ => spread(plan, deployment, &mut active, limits),
    }
}

/// Whether all that is wanted is in this set, and available.
fn is_saturated(set: &Value, limits: Limits) -> bool {
    text(set, &["metadata", "annotations", DESIRED]) == limits.wanted.to_string()
        && replicas(set) == limits.wanted
        && integer(set, &["status", "availableReplicas"]).unwrap_or(0) == limits.wanted
}

/// Each set changes in proportion to its size; what rounding leaves goes to the largest.
fn spread(plan: &mut Plan, deployment: &Value, active: &mut [&Value], limits: Limits) {
    let total: i64 = active.iter().map(|one| replicas(one)).sum();
    let change = limits.most() - total;
    // Of sets of one size the newest grows first, and the oldest shrinks first.
    let age = |one: &Value| (text(one, &["metadata", "creationTimestamp"]).to_owned(), Key::of(one));
    active.sort_by_cached_key(|one| age(one));
    if change > 0 {
        active.reverse();
    }
    active.sort_by_cached_key(|one| Reverse(replicas(one)));
    let part = |one: &Value| {
        let before: i64 = text(one, &["metadata", "annotations", MOST]).parse().unwrap_or(total);
        let exact = rounded(replicas(one).saturating_mul(limits.most()), before.max(1)) - replicas(one);
        if change >= 0 {
            exact.clamp(0, change)
        } else {
            exact.clamp(change, 0)
        }
    };
    let mut rest = change;
    let mut sizes: Vec<i64> = Vec::new();
    for one in active.iter() {
        let own = if change >= 0 {
            part(one).min(rest)
        } else {
            part(one).max(rest)
        };
        rest -= own;
        sizes.push(replicas(one) + own);
    }
    if let Some(largest) = sizes.first_mut() {
        *largest = (*largest + rest).max(0);
    }
    for (one, size) in active.iter().zip(sizes) {
        scale_to(plan, deployment, one, size.max(0));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(replicas: i64, surge: Value, unavailable: Value) -> Value {
        let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        json!({"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}})
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        for (replicas, surge, unavailable, expected) in [
            (4, json!("25%"), json!("25%"), (1, 1)),
            (3, json!("25%"), json!("25%"), (1, 0)),
            (1, json!(0), json!("25%"), (0, 1)),
            (10, json!(2), json!(3), (2, 3)),
            (2, json!("100%"), json!(9), (2, 2)),
        ] {
            let limits = Limits::of(&deployment(replicas, surge, unavailable));
            assert_eq!((limits.surge, limits.unavailable), expected, "{replicas} replicas");
        }
    }

    fn set(name: &str, replicas: i64, available: i64, noted: (i64, i64)) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": "default", "creationTimestamp": format!("2026-11-25T11:00:0{name}Z"),
                "annotations": {DESIRED: noted.0.to_string(), MOST: noted.1.to_string()},
            },
            "spec": {"replicas": replicas},
            "status": {"availableReplicas": available},
        })
    }

    /// The sizes that sets `1`, `2`, … get, the last being the newest.
    fn resized(deployment: &Value, sets: &[Value]) -> Vec<i64> {
        use super::super::super::action::Action;
        use crate::request::Patch;
        let mut plan = Plan::default();
        let (new, old) = sets.split_last().unwrap();
        resize(&mut plan, deployment, Some(new), old);
        let mut sizes: Vec<i64> = sets.iter().map(replicas).collect();
        for action in &plan.actions {
            let Action::Patch {
                at,
                patch: Patch::Merge(change),
                ..
            } = action
            else {
                continue;
            };
            let number: usize = at.1.parse().unwrap();
            sizes[number - 1] = integer(change, &["spec", "replicas"]).unwrap();
        }
        sizes
    }

    #[test]
    fn each_set_gets_its_part_of_a_new_size() {
        let noted = (10, 13);
        for (wanted, sizes, expected) in [
            // 10 → 20 while it rolls: 25 pods for 13; 5 of 13 are 9.6, which is nearer to 10.
            (20, vec![8, 5], vec![15, 10]),
            // Of equals the newest grows first, and keeps what rounding leaves; the oldest shrinks first.
            (15, vec![2, 2, 2], vec![3, 3, 13]),
            (1, vec![2, 2, 2], vec![0, 0, 2]),
        ] {
            let deployment = deployment(wanted, json!("25%"), json!("25%"));
            let sets: Vec<Value> = sizes
                .iter()
                .enumerate()
                .map(|(number, size)| set(&(number + 1).to_string(), *size, 0, noted))
                .collect();
            assert_eq!(resized(&deployment, &sets), expected, "{wanted} for {sizes:?}");
        }
    }

    #[test]
    fn a_new_set_that_has_all_that_is_wanted_ends_the_older_ones() {
        let deployment = deployment(4, json!("25%"), json!("25%"));
        let sets = [set("1", 2, 2, (8, 10)), set("2", 4, 4, (4, 5))];
        assert_eq!(resized(&deployment, &sets), [0, 4]);
        let sets = [set("1", 2, 2, (8, 10)), set("2", 4, 3, (4, 5))];
        assert_ne!(resized(&deployment, &sets), [0, 4], "one is not available");
    }
}
