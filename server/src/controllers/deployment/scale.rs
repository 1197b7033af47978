//! How many replicas each ReplicaSet of a Deployment gets: rolling from old to new, or resizing all.
//!
//! Source: Kubernetes v1.36 `pkg/controller/deployment/rolling.go`, `sync.go` (`scale`, `isScalingEvent`), and
//! `util/deployment_util.go` (`ResolveFenceposts`, `NewRSNewReplicas`).

use agent::wire::object::{at, integer, text};
use serde_json::Value;

use super::super::action::Plan;
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

/// Whether the Deployment's size changed since its sets were last sized.
pub fn is_scaling<'a>(deployment: &Value, sets: impl Iterator<Item = &'a Value>) -> bool {
    let wanted = replicas(deployment).to_string();
    let other = |one: &Value| {
        let noted = text(one, &["metadata", "annotations", DESIRED]);
        replicas(one) > 0 && !noted.is_empty() && noted != wanted
    };
    sets.into_iter().any(other)
}

/// Gives the Deployment's size to its sets: all to the only one that has pods, or to each its part of the change.
pub fn resize(plan: &mut Plan, deployment: &Value, new: Option<&Value>, old: &[Value]) {
    let limits = Limits::of(deployment);
    let mut active: Vec<&Value> = new.into_iter().chain(old).filter(|one| replicas(one) > 0).collect();
    match (active.as_slice(), new) {
        ([], Some(new)) => scale_to(plan, deployment, new, limits.wanted),
        ([], None) => {}
        ([only], _) => scale_to(plan, deployment, only, limits.wanted),
        _ => {
            active.sort_by_key(|one| std::cmp::Reverse(replicas(one)));
            spread(plan, deployment, &active, limits);
        }
    }
}

/// Each set changes in proportion to its size; what rounding leaves goes to the largest.
fn spread(plan: &mut Plan, deployment: &Value, active: &[&Value], limits: Limits) {
    let total: i64 = active.iter().map(|one| replicas(one)).sum();
    let change = limits.most() - total;
    let part = |one: &Value| {
        let before: i64 = text(one, &["metadata", "annotations", MOST]).parse().unwrap_or(total);
        let exact = replicas(one)
            .saturating_mul(limits.most())
            .checked_div(before.max(1))
            .unwrap_or(0)
            - replicas(one);
        if change >= 0 {
            exact.clamp(0, change)
        } else {
            exact.clamp(change, 0)
        }
    };
    let mut rest = change;
    let mut sizes: Vec<i64> = Vec::new();
    for one in active {
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
}
