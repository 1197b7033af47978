//! One role for each controller, bound to the service account of that name in `kube-system`. Data.
//!
//! In-process controllers act as these accounts. `system:controller:NAME` is bound to `kube-system:NAME`, as upstream has it.
//! Source: Kubernetes v1.36, `plugin/pkg/auth/authorizer/rbac/bootstrappolicy/controller_policy.go`.

use super::EVENTS;

/// Account and rules.
pub const CONTROLLERS: &[(&str, &[&str])] = &[
    (
        "attachdetach-controller",
        &[
            "list,watch core persistentvolumeclaims,persistentvolumes",
            "get,list,watch core nodes",
            "patch,update core nodes/status",
            "list,watch core pods",
            EVENTS,
            "create,delete,get,list,watch storage.k8s.io volumeattachments",
            "get,list,watch storage.k8s.io csidrivers,csinodes",
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &["escalate,get,list,patch,update,watch rbac.authorization.k8s.io clusterroles"],
    ),
    (
        "cronjob-controller",
        &[
            "get,list,update,watch batch cronjobs",
            "create,delete,get,list,patch,update,watch batch jobs",
            "update batch cronjobs/status",
            "update batch cronjobs/finalizers",
            "delete,list core pods",
            EVENTS,
        ],
    ),
    (
        "daemon-set-controller",
        &[
            "get,list,watch apps daemonsets",
            "update apps daemonsets/status",
            "update apps daemonsets/finalizers",
            "list,watch core nodes",
            "create,delete,list,patch,watch core pods",
            "create core pods/binding",
            "create,delete,get,list,patch,update,watch apps controllerrevisions",
            EVENTS,
        ],
    ),
    (
        "deployment-controller",
        &[
            "get,list,patch,update,watch apps deployments",
            "update apps deployments/status",
            "update apps deployments/finalizers",
            "create,delete,get,list,patch,update,watch apps replicasets",
            "get,list,update,watch core pods",
            EVENTS,
        ],
    ),
    (
        "disruption-controller",
        &[
            "get,list,watch apps deployments,replicasets,statefulsets",
            "get,list,watch core replicationcontrollers",
            "get,list,watch policy poddisruptionbudgets",
            "update policy poddisruptionbudgets/status",
            "list,watch core pods",
            "patch,update core pods/status",
            "get * */scale",
            EVENTS,
        ],
    ),
    (
        "endpoint-controller",
        &[
            "get,list,watch core pods,services",
            "create,delete,get,list,update core endpoints",
            "create core endpoints/restricted",
            EVENTS,
        ],
    ),
    (
        "endpointslice-controller",
        &[
            "get,list,watch core nodes,pods,services",
            "update core services/finalizers",
            "create,delete,get,list,update discovery.k8s.io endpointslices",
            EVENTS,
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            "get,list,watch core endpoints,services",
            "update core endpoints/finalizers",
            "create,delete,get,list,update discovery.k8s.io endpointslices",
            EVENTS,
        ],
    ),
    (
        "ephemeral-volume-controller",
        &[
            "update core pods/finalizers",
            "get,list,watch core pods",
            "create,get,list,watch core persistentvolumeclaims",
            EVENTS,
        ],
    ),
    (
        "expand-controller",
        &[
            "get,list,patch,update,watch core persistentvolumes",
            "patch,update core persistentvolumeclaims/status",
            "get,list,watch core persistentvolumeclaims",
            "get,list,watch storage.k8s.io storageclasses",
            EVENTS,
        ],
    ),
    (
        "generic-garbage-collector",
        &["delete,get,list,patch,update,watch * *", EVENTS],
    ),
    (
        "horizontal-pod-autoscaler",
        &[
            "get,list,watch autoscaling horizontalpodautoscalers",
            "update autoscaling horizontalpodautoscalers/status",
            "get,update * */scale",
            "list core pods",
            "list metrics.k8s.io pods",
            "get,list custom.metrics.k8s.io *",
            "get,list external.metrics.k8s.io *",
            EVENTS,
        ],
    ),
    (
        "job-controller",
        &[
            "get,list,patch,update,watch batch jobs",
            "update batch jobs/status",
            "update batch jobs/finalizers",
            "create,delete,list,patch,watch core pods",
            EVENTS,
        ],
    ),
    (
        "namespace-controller",
        &[
            "delete,get,list,watch core namespaces",
            "update core namespaces/finalize,namespaces/status",
            "delete,deletecollection,get,list * *",
        ],
    ),
    (
        "node-controller",
        &[
            "delete,get,list,patch,update,watch core nodes",
            "patch,update core nodes/status",
            "patch,update core pods/status",
            "delete,get,list,watch core pods",
            "create,get,list,update networking.k8s.io clustercidrs",
            "get,list,watch coordination.k8s.io leases",
            EVENTS,
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            "create,delete,get,list,update,watch core persistentvolumes",
            "update core persistentvolumes/status",
            "get,list,update,watch core persistentvolumeclaims",
            "update core persistentvolumeclaims/status",
            "create,delete,get,list,watch core pods",
            "get,list,watch storage.k8s.io storageclasses",
            "get,list,watch core nodes",
            "create,delete,get,update core endpoints,services",
            "get,list core secrets",
            EVENTS,
        ],
    ),
    (
        "pod-garbage-collector",
        &[
            "delete,list,watch core pods",
            // Watched here, polled upstream.
            "get,list,watch core nodes",
            "patch core pods/status",
            EVENTS,
        ],
    ),
    (
        "pv-protection-controller",
        &["get,list,update,watch core persistentvolumes", EVENTS],
    ),
    (
        "pvc-protection-controller",
        &[
            "get,list,update,watch core persistentvolumeclaims",
            "get,list,watch core pods",
            EVENTS,
        ],
    ),
    (
        "replicaset-controller",
        &[
            "get,list,update,watch apps replicasets",
            "update apps replicasets/status",
            "update apps replicasets/finalizers",
            "create,delete,list,patch,watch core pods",
            EVENTS,
        ],
    ),
    (
        "replication-controller",
        &[
            "get,list,update,watch core replicationcontrollers",
            "update core replicationcontrollers/status",
            "update core replicationcontrollers/finalizers",
            "create,delete,list,patch,watch core pods",
            EVENTS,
        ],
    ),
    (
        "resourcequota-controller",
        &["list,watch * *", "update core resourcequotas/status", EVENTS],
    ),
    (
        "root-ca-cert-publisher",
        &[
            "create,get,list,update,watch core configmaps",
            "get,list,watch core namespaces",
            EVENTS,
        ],
    ),
    (
        "service-account-controller",
        &[
            "create,get,list,watch core serviceaccounts",
            "get,list,watch core namespaces",
            // One controller here gives a namespace its account and its `kube-root-ca.crt`.
            "create,get,list,patch,update,watch core configmaps",
            EVENTS,
        ],
    ),
    (
        "service-controller",
        &[
            "get,list,watch core services",
            "patch,update core services/status",
            "list,watch core nodes",
            EVENTS,
        ],
    ),
    (
        "statefulset-controller",
        &[
            "list,watch core pods",
            "get,list,watch apps statefulsets",
            "update apps statefulsets/status",
            "update apps statefulsets/finalizers",
            "create,delete,get,patch,update core pods",
            "create,delete,get,list,patch,update,watch apps controllerrevisions",
            "create,delete,get,list,patch,update,watch core persistentvolumeclaims",
            EVENTS,
        ],
    ),
    (
        "ttl-after-finished-controller",
        &["delete,get,list,watch batch jobs", EVENTS],
    ),
    ("ttl-controller", &["list,patch,update,watch core nodes", EVENTS]),
    (
        "certificate-controller",
        &[
            "delete,get,list,watch certificates.k8s.io certificatesigningrequests",
            "update certificates.k8s.io certificatesigningrequests/approval,certificatesigningrequests/status",
            "approve,sign certificates.k8s.io signers",
            "create authorization.k8s.io subjectaccessreviews",
            EVENTS,
        ],
    ),
];
