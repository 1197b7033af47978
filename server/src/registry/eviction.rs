//! Asking a pod to leave, if its disruption budget allows it: `pods/NAME/eviction`.
//!
//! Source: Kubernetes v1.36 `pkg/registry/core/pod/storage/eviction.go`.

use agent::wire::object::{self, at, integer, list, text};
use agent::wire::selector::{LabelSelector, Labels};
use agent::wire::status::{Reason, Status};
use agent::wire::time;
use serde_json::{Value, json};

use super::subresource::created;
use super::{Context, Registry};
use crate::cache::Filter;
use crate::kinds;
use crate::request::{Answer, DeleteOptions, WriteOptions};

const BLOCKED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// How many evicted pods a budget remembers. Source: `MaxDisruptedPodSize`.
const MOST_DISRUPTED: usize = 2000;

/// What budgets say about an eviction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// It costs no budget anything.
    Free,
    /// It takes one of the budget's disruptions.
    Spend,
}

impl Registry {
    /// Deletes a pod that may be disturbed; its budget is asked first and pays for it.
    pub(super) async fn evict(
        &self,
        context: Context<'_>,
        eviction: &Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        let name = context.named()?;
        let pod = self.cache.get(&context.key(name));
        let pod = pod.ok_or_else(|| context.not_found(name))?.value();
        let asked = |path: &[&str]| at(eviction, path).and_then(Value::as_str).map(str::to_owned);
        let mut delete = DeleteOptions {
            grace: integer(eviction, &["deleteOptions", "gracePeriodSeconds"]),
            propagation: asked(&["deleteOptions", "propagationPolicy"]),
            uid: asked(&["deleteOptions", "preconditions", "uid"]),
            resource_version: asked(&["deleteOptions", "preconditions", "resourceVersion"]),
            dry_run: options.dry_run,
        };
        let context = Context {
            subresource: None,
            ..context
        };
        // Before a budget pays: who may not delete the pod spends nothing.
        self.may_delete(context, name, &pod)?;
        if !needs_no_leave(&pod) {
            self.ask_budget(context, name, &pod, options.dry_run).await?;
            if !options.dry_run && delete.resource_version.is_none() {
                self.modify(context, name, false, |pod| Ok(targeted(pod, self.world.now())))
                    .await?;
            }
        }
        // The pod that was looked at, not a namesake that came since.
        delete
            .uid
            .get_or_insert_with(|| text(&pod, &["metadata", "uid"]).to_owned());
        self.delete(context, &delete).await?;
        Ok(created())
    }

    async fn ask_budget(&self, context: Context<'_>, name: &str, pod: &Value, dry_run: bool) -> Result<(), Status> {
        let row = kinds::find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_such_route)?;
        let budgets = self
            .cache
            .list(&row.range(context.namespace), &Filter::default(), None, None, None);
        let budgets = budgets.map_err(Status::internal)?;
        let budgets = budgets.items.iter().map(|item| item.value());
        let matching: Vec<Value> = budgets.filter(|budget| selects(budget, pod)).collect();
        let budget = match matching.as_slice() {
            [] => return Ok(()),
            [budget] => budget,
            _ => {
                let text =
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(Status::failure(Reason::InternalError, text));
            }
        };
        if verdict(budget, pod) == Verdict::Free {
            return Ok(());
        }
        let budget = text(budget, &["metadata", "name"]).to_owned();
        let context = Context {
            row: &row,
            asked: &row,
            name: Some(&budget),
            subresource: Some("status"),
            ..context
        };
        let spent = |budget: &Value| spend(budget, name, self.world.now());
        self.modify(context, &budget, dry_run, spent).await?;
        Ok(())
    }
}

/// Over, not begun, or going anyway.
fn needs_no_leave(pod: &Value) -> bool {
    matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed" | "Pending")
        || at(pod, &["metadata", "deletionTimestamp"]).is_some()
}

fn selects(budget: &Value, pod: &Value) -> bool {
    let selector = at(budget, &["spec", "selector"]).cloned();
    let selector = selector.and_then(|selector| serde_json::from_value::<LabelSelector>(selector).ok());
    let labels = selector.and_then(|selector| Labels::try_from(&selector).ok());
    labels.is_some_and(|labels| labels.matches(|key| at(pod, &["metadata", "labels", key]).and_then(Value::as_str)))
}

/// A pod that is not ready serves nobody: it may go if the rest is well, or always where the budget says so.
fn verdict(budget: &Value, pod: &Value) -> Verdict {
    let mut conditions = list(pod, &["status", "conditions"]).iter();
    let ready = conditions.any(|one| text(one, &["type"]) == "Ready" && text(one, &["status"]) == "True");
    let healthy = integer(budget, &["status", "currentHealthy"]).unwrap_or(0);
    let desired = integer(budget, &["status", "desiredHealthy"]).unwrap_or(0);
    let free = match text(budget, &["spec", "unhealthyPodEvictionPolicy"]) {
        "AlwaysAllow" => !ready,
        _ => !ready && healthy >= desired && desired > 0,
    };
    if free { Verdict::Free } else { Verdict::Spend }
}

/// The budget after one more disruption, or why there is none to be had.
fn spend(budget: &Value, pod: &str, now: jiff::Timestamp) -> Result<Value, Status> {
    let name = text(budget, &["metadata", "name"]);
    let number = |key: &str| integer(budget, &["status", key]).unwrap_or(0);
    let blocked =
        |detail: String| Status::failure(Reason::TooManyRequests, BLOCKED).cause("DisruptionBudget", detail, "");
    if number("observedGeneration") < integer(budget, &["metadata", "generation"]).unwrap_or(0) {
        let detail = format!("The disruption budget {name} is still being processed by the server.");
        return Err(blocked(detail).retry_after(10));
    }
    let disrupted = at(budget, &["status", "disruptedPods"]).and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden("policy", "poddisruptionbudgets", name, why));
    }
    let allowed = number("disruptionsAllowed");
    if allowed <= 0 {
        let (desired, healthy) = (number("desiredHealthy"), number("currentHealthy"));
        return Err(blocked(format!(
            "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        )));
    }
    let mut new = budget.clone();
    object::set(&mut new, &["status", "disruptionsAllowed"], allowed - 1);
    object::set(&mut new, &["status", "disruptedPods", pod], time::seconds(now));
    Ok(new)
}

/// The pod says that it is to go, for whoever counts failures.
fn targeted(pod: &Value, now: jiff::Timestamp) -> Value {
    let mut new = pod.clone();
    let mut conditions = list(pod, &["status", "conditions"]).to_vec();
    conditions.retain(|condition| text(condition, &["type"]) != "DisruptionTarget");
    conditions.push(json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastTransitionTime": time::seconds(now),
    }));
    object::set(&mut new, &["status", "conditions"], conditions);
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_not_ready_may_go_if_the_rest_is_well() {
        let pod =
            |ready: &str| json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
        let budget = |policy: &str, healthy: i64| json!({"spec": {"unhealthyPodEvictionPolicy": policy}, "status": {"currentHealthy": healthy, "desiredHealthy": 2}});
        for (ready, policy, healthy, expected) in [
            ("True", "IfHealthyBudget", 3, Verdict::Spend),
            ("False", "IfHealthyBudget", 2, Verdict::Free),
            ("False", "IfHealthyBudget", 1, Verdict::Spend),
            ("False", "AlwaysAllow", 0, Verdict::Free),
            ("True", "AlwaysAllow", 3, Verdict::Spend),
        ] {
            assert_eq!(
                verdict(&budget(policy, healthy), &pod(ready)),
                expected,
                "{ready} {policy} {healthy}"
            );
        }
    }

    #[test]
    fn a_budget_is_spent_one_by_one() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let budget = json!({"metadata": {"name": "b", "generation": 1}, "status": {"observedGeneration": 1, "disruptionsAllowed": 1}});
        let spent = spend(&budget, "p", now).unwrap();
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        assert_eq!(spend(&spent, "q", now).unwrap_err().code, 429);
        let stale = json!({"metadata": {"name": "b", "generation": 2}, "status": {"observedGeneration": 1, "disruptionsAllowed": 1}});
        assert_eq!(
            spend(&stale, "p", now)
                .unwrap_err()
                .details
                .unwrap()
                .retry_after_seconds,
            10
        );
    }
}
