//! From a pod to what the runtime is asked for. Pure.
//!
//! Source: Kubernetes v1.36, `pkg/kubelet/kuberuntime` `generateLinuxContainerConfig`, `pkg/kubelet/cm/helpers_linux.go`
//! (CPU shares and quota), `pkg/kubelet/qos/policy.go` (OOM scores).

use std::path::{Path, PathBuf};

use super::files;
use super::qos;
use crate::runtime::{ContainerSpec, Limits, Mount, SandboxSpec};
use crate::wire::pod::{Container, Pod, Resources};

/// The folder of a pod's logs.
pub fn log_dir(logs: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    logs.join(format!("{namespace}_{name}_{uid}"))
}

/// The log of one attempt of a container.
pub fn log_path(logs: &Path, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    let folder = log_dir(logs, &pod.meta.namespace, &pod.meta.name, &pod.meta.uid);
    folder.join(container).join(format!("{attempt}.log"))
}

/// The pod's shared surroundings.
pub fn sandbox(pod: &Pod, logs: &Path) -> SandboxSpec {
    let spec = &pod.spec;
    let sysctls = spec.security_context.sysctls.iter();
    SandboxSpec {
        pod_uid: pod.meta.uid.clone(),
        namespace: pod.meta.namespace.clone(),
        name: pod.meta.name.clone(),
        hostname: files::hostname(pod, ""), // of the own UTS namespace, which a pod on the node's network has not
        host_network: spec.host_network,
        host_pid: spec.host_pid,
        host_ipc: spec.host_ipc,
        limits: pod_limits(pod),
        log_dir: log_dir(logs, &pod.meta.namespace, &pod.meta.name, &pod.meta.uid),
        sysctls: sysctls.map(|it| (it.name.clone(), it.value.clone())).collect(),
    }
}

/// One attempt of a container, given its environment and mounts. `memory` is the node's, in bytes.
pub fn container(
    pod: &Pod,
    it: &Container,
    attempt: u32,
    env: Vec<(String, String)>,
    mounts: Vec<Mount>,
    logs: &Path,
    memory: u64,
) -> ContainerSpec {
    let (own, shared) = (&it.security_context, &pod.spec.security_context);
    let id = |own: Option<i64>, shared: Option<i64>| own.or(shared).and_then(|id| u32::try_from(id).ok());
    let groups = shared.supplemental_groups.iter().copied().chain(shared.fs_group);
    let known = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    let expand = |texts: &[String]| expanded(texts, &env);
    ContainerSpec {
        name: it.name.clone(),
        attempt,
        image: it.image.clone(),
        command: expand(&it.command),
        args: expand(&it.args),
        working_dir: known(&it.working_dir),
        mounts,
        limits: limits(&it.resources),
        run_as_user: id(own.run_as_user, shared.run_as_user),
        run_as_group: id(own.run_as_group, shared.run_as_group),
        groups: groups.filter_map(|id| u32::try_from(id).ok()).collect(),
        run_as_non_root: own.run_as_non_root.or(shared.run_as_non_root).unwrap_or(false),
        privileged: own.privileged,
        add_capabilities: own.capabilities.add.clone(),
        drop_capabilities: own.capabilities.drop.clone(),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        read_only_root: own.read_only_root_filesystem,
        tty: it.tty,
        stdin: it.stdin,
        stdin_once: it.stdin_once,
        log_path: log_path(logs, pod, &it.name, attempt),
        log_max_bytes: None,
        log_max_files: None,
        oom_score_adj: oom_score_adj(pod, it, memory),
        env,
    }
}

fn expanded(texts: &[String], env: &[(String, String)]) -> Vec<String> {
    let known = env.iter().cloned().collect();
    texts.iter().map(|text| super::env::expand(text, &known)).collect()
}

/// Limits of one container.
fn limits(resources: &Resources) -> Limits {
    let positive = |amount: i64| u64::try_from(amount).ok().filter(|it| *it > 0);
    let cpu = |amount: Option<crate::wire::quantity::Quantity>| amount.and_then(|it| positive(it.milli_value()));
    Limits {
        memory: resources.limit("memory").and_then(|it| positive(it.value())),
        cpu_quota: cpu(resources.limit("cpu")).map(quota),
        cpu_shares: Some(cpu(resources.request("cpu")).map_or(LEAST_SHARES, shares)),
        pids: None,
    }
}

/// The kernel takes no less than a millisecond in a period.
fn quota(millicores: u64) -> u64 {
    millicores.saturating_mul(100).max(1000)
}

const LEAST_SHARES: u64 = 2;
const MOST_SHARES: u64 = 262_144;

fn shares(millicores: u64) -> u64 {
    (millicores.saturating_mul(1024) / 1000).clamp(LEAST_SHARES, MOST_SHARES)
}

/// Limits of a whole pod: the sum of its containers' where all of them have one, no less than any init container's.
fn pod_limits(pod: &Pod) -> Limits {
    let each = |list: &[Container]| list.iter().map(|it| limits(&it.resources)).collect::<Vec<_>>();
    let (sidecars, inits): (Vec<_>, Vec<_>) = pod
        .spec
        .init_containers
        .iter()
        .cloned()
        .partition(Container::is_sidecar);
    let long: Vec<Limits> = each(&pod.spec.containers).into_iter().chain(each(&sidecars)).collect();
    let short = each(&inits);
    let all = |of: fn(&Limits) -> Option<u64>| {
        let sum = long
            .iter()
            .map(of)
            .try_fold(0u64, |sum, it| Some(sum.saturating_add(it?)))?;
        short.iter().map(of).try_fold(sum, |most, it| Some(most.max(it?)))
    };
    let requested = long
        .iter()
        .filter_map(|it| it.cpu_shares)
        .fold(0u64, u64::saturating_add);
    Limits {
        memory: all(|it| it.memory),
        cpu_quota: all(|it| it.cpu_quota),
        cpu_shares: Some(requested.clamp(LEAST_SHARES, MOST_SHARES)),
        pids: None,
    }
}

fn oom_score_adj(pod: &Pod, it: &Container, memory: u64) -> i32 {
    match qos::class(&pod.spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = it.resources.request("memory").map_or(0, |amount| amount.value().max(0));
            let part = i64::try_from(u128::from(request.unsigned_abs()) * 1000 / u128::from(memory.max(1)));
            i32::try_from((1000 - part.unwrap_or(1000)).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        Pod::of(&json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn run(spec: Value, env: &[(&str, &str)]) -> ContainerSpec {
        let pod = pod(spec);
        let env = env
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        container(
            &pod,
            &pod.spec.containers[0],
            2,
            env,
            vec![],
            Path::new("/l"),
            1000 << 20,
        )
    }

    #[test]
    fn limits_are_in_the_kernel_s_units() {
        for (resources, memory, quota, shares) in [
            (json!({}), None, None, 2),
            (
                json!({"limits": {"cpu": "500m", "memory": "64Mi"}}),
                Some(64 << 20),
                Some(50_000),
                512,
            ),
            (json!({"requests": {"cpu": "2"}}), None, None, 2048),
            (json!({"limits": {"cpu": "1m"}}), None, Some(1000), 2),
        ] {
            let spec = run(json!({"containers": [{"name": "c", "resources": resources}]}), &[]);
            let expected = Limits {
                memory,
                cpu_quota: quota,
                cpu_shares: Some(shares),
                pids: None,
            };
            assert_eq!(spec.limits, expected, "{resources}");
        }
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let limited = json!({"name": "a", "resources": {"limits": {"memory": "10Mi", "cpu": "1"}}});
        let large = json!({"name": "i", "resources": {"limits": {"memory": "50Mi", "cpu": "1"}}});
        let both = sandbox(
            &pod(json!({"containers": [limited, limited], "initContainers": [large]})),
            Path::new("/l"),
        );
        assert_eq!(
            (both.limits.memory, both.limits.cpu_quota),
            (Some(50 << 20), Some(200_000))
        );
        let one = sandbox(&pod(json!({"containers": [limited, {"name": "b"}]})), Path::new("/l"));
        assert_eq!(one.limits.memory, None);
        assert_eq!(one.log_dir, Path::new("/l/ns_web_u"));
    }

    #[test]
    fn a_container_overrides_its_pod_and_sees_its_environment() {
        let spec = run(
            json!({
                "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "runAsNonRoot": true},
                "containers": [{"name": "c", "image": "i", "command": ["sh", "$(A)"], "args": ["$(B)"],
                    "securityContext": {"runAsUser": 9, "allowPrivilegeEscalation": false}}],
            }),
            &[("A", "1")],
        );
        assert_eq!(
            (spec.run_as_user, spec.run_as_group, spec.groups.as_slice()),
            (Some(9), Some(2), &[3][..])
        );
        assert!(spec.run_as_non_root && spec.no_new_privileges && !spec.privileged);
        assert_eq!(
            (spec.command, spec.args),
            (vec!["sh".into(), "1".into()], vec!["$(B)".to_owned()])
        );
        assert_eq!(spec.log_path, Path::new("/l/ns_web_u/c/2.log"));
    }

    #[test]
    fn the_kernel_kills_best_effort_first() {
        for (resources, score) in [
            (json!({}), 1000),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), -997),
            (json!({"requests": {"memory": "100Mi"}}), 900),
            (json!({"requests": {"memory": "1"}}), 999),
            (json!({"requests": {"memory": "2000Mi"}}), 3),
        ] {
            let spec = run(json!({"containers": [{"name": "c", "resources": resources}]}), &[]);
            assert_eq!(spec.oom_score_adj, score, "{resources}");
        }
    }
}
