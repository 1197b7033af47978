//! The roles that every cluster has, and whom they are bound to. Data; the notation is [`super::rule`]'s.
//!
//! Source: Kubernetes v1.36, `plugin/pkg/auth/authorizer/rbac/bootstrappolicy/policy.go`; `system:k3s-controller` and the
//! `k3s-cloud-controller-manager`: K3s v1.34, `manifests/rolebindings.yaml`, `manifests/ccm.yaml`.

use super::{Binding, Role};

const fn role(name: &'static str, rules: &'static [&'static str]) -> Role {
    Role {
        name,
        rules,
        label: "",
        gathers: "",
    }
}

/// A role whose rules become part of those that gather its label.
const fn part(name: &'static str, label: &'static str, rules: &'static [&'static str]) -> Role {
    Role {
        name,
        rules,
        label,
        gathers: "",
    }
}

/// A role made of all roles with a label.
const fn whole(name: &'static str, label: &'static str, gathers: &'static str) -> Role {
    Role {
        name,
        rules: &[],
        label,
        gathers,
    }
}

const TO_ADMIN: &str = "rbac.authorization.k8s.io/aggregate-to-admin";
const TO_EDIT: &str = "rbac.authorization.k8s.io/aggregate-to-edit";
const TO_VIEW: &str = "rbac.authorization.k8s.io/aggregate-to-view";

/// ClusterRoles that are not a controller's.
pub const ROLES: &[Role] = &[
    role("cluster-admin", &["* * *", "* url *"]),
    role(
        "system:discovery",
        &["get url /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/"],
    ),
    role(
        "system:monitoring",
        &["get url /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*"],
    ),
    role(
        "system:basic-user",
        &[
            "create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews",
            "create authentication.k8s.io selfsubjectreviews",
        ],
    ),
    role(
        "system:public-info-viewer",
        &["get url /healthz,/livez,/readyz,/version,/version/"],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[
            "get url /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
        ],
    ),
    whole("admin", "", TO_ADMIN),
    whole("edit", TO_ADMIN, TO_EDIT),
    whole("view", TO_EDIT, TO_VIEW),
    part(
        "system:aggregate-to-admin",
        TO_ADMIN,
        &[
            "create authorization.k8s.io localsubjectaccessreviews",
            "create,delete,deletecollection,get,list,patch,update,watch rbac.authorization.k8s.io rolebindings,roles",
        ],
    ),
    part(
        "system:aggregate-to-edit",
        TO_EDIT,
        &[
            "get,list,watch core pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy",
            "impersonate core serviceaccounts",
            "create,delete,deletecollection,patch,update core pods,pods/attach,pods/exec,pods/portforward,pods/proxy",
            "create core pods/eviction",
            "create,delete,deletecollection,patch,update core configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy",
            "create core serviceaccounts/token",
            "create,delete,deletecollection,patch,update apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale",
            "create,delete,deletecollection,patch,update autoscaling horizontalpodautoscalers",
            "create,delete,deletecollection,patch,update batch cronjobs,jobs",
            "create,delete,deletecollection,patch,update policy poddisruptionbudgets",
            "create,delete,deletecollection,patch,update networking.k8s.io ingresses,networkpolicies",
            "create,delete,deletecollection,get,list,patch,update,watch coordination.k8s.io leases",
        ],
    ),
    part(
        "system:aggregate-to-view",
        TO_VIEW,
        &[
            "get,list,watch core configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status",
            "get,list,watch core bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status",
            "get,list,watch core namespaces",
            "get,list,watch discovery.k8s.io endpointslices",
            "get,list,watch apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
            "get,list,watch autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status",
            "get,list,watch batch cronjobs,cronjobs/status,jobs,jobs/status",
            "get,list,watch policy poddisruptionbudgets,poddisruptionbudgets/status",
            "get,list,watch networking.k8s.io ingresses,ingresses/status,networkpolicies",
            "get,list,watch resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates",
        ],
    ),
    role(
        "system:auth-delegator",
        &[
            "create authentication.k8s.io tokenreviews",
            "create authorization.k8s.io subjectaccessreviews",
        ],
    ),
    role("system:kube-dns", &["list,watch core endpoints,services"]),
    role(
        "system:node-bootstrapper",
        &["create,get,list,watch certificates.k8s.io certificatesigningrequests"],
    ),
    role(
        "system:node-problem-detector",
        &["get core nodes", "patch core nodes/status", super::EVENTS],
    ),
    role(
        "system:node-proxier",
        &[
            "list,watch core endpoints,services",
            "get,list,watch core nodes",
            "list,watch discovery.k8s.io endpointslices",
            "list,watch networking.k8s.io servicecidrs",
            super::EVENTS,
        ],
    ),
    role(
        "system:kubelet-api-admin",
        &[
            "get,list,watch core nodes",
            "proxy core nodes",
            "* core nodes/log,nodes/metrics,nodes/proxy,nodes/stats,nodes/healthz,nodes/configz,nodes/pods,nodes/checkpoint",
        ],
    ),
    // Held by nobody: the node authorizer decides. Operators bind it when they must.
    role(
        "system:node",
        &[
            "create authentication.k8s.io tokenreviews",
            "create authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews",
            "get,list,watch core services",
            "create,get,list,watch core nodes",
            "patch,update core nodes/status",
            "patch,update core nodes",
            super::EVENTS,
            "get,list,watch core pods",
            "create,delete core pods",
            "patch,update core pods/status",
            "create core pods/eviction",
            "get,list,watch core configmaps,secrets",
            "get core persistentvolumeclaims,persistentvolumes",
            "create,get,list,watch certificates.k8s.io certificatesigningrequests",
            "create,delete,get,patch,update coordination.k8s.io leases",
            "get storage.k8s.io volumeattachments",
            "create core serviceaccounts/token",
            "get,patch,update core persistentvolumeclaims/status",
            "get,list,watch storage.k8s.io csidrivers",
            "create,delete,get,patch,update storage.k8s.io csinodes",
            "get,list,watch node.k8s.io runtimeclasses",
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            "create,delete,get,list,watch core persistentvolumes",
            "get,list,update,watch core persistentvolumeclaims",
            "get,list,watch storage.k8s.io storageclasses",
            "watch core events",
            super::EVENTS,
        ],
    ),
    role(
        "system:volume-scheduler",
        &[
            "get,list,patch,update,watch core persistentvolumes",
            "get,list,watch storage.k8s.io storageclasses",
            "get,list,patch,update,watch core persistentvolumeclaims",
        ],
    ),
    role(
        "system:kube-scheduler",
        &[
            super::EVENTS,
            "create,list,watch coordination.k8s.io leases",
            "get,update coordination.k8s.io leases kube-scheduler",
            "get,list,watch core nodes",
            "delete,get,list,watch core pods",
            "create core bindings,pods/binding",
            "patch,update core pods/status",
            "get,list,watch core replicationcontrollers,services",
            "get,list,watch apps replicasets,statefulsets",
            "get,list,watch policy poddisruptionbudgets",
            "get,list,watch core persistentvolumeclaims,persistentvolumes",
            "create authentication.k8s.io tokenreviews",
            "create authorization.k8s.io subjectaccessreviews",
            "get,list,watch storage.k8s.io csidrivers,csinodes,csistoragecapacities,volumeattachments",
            "get,list,watch core namespaces",
            "get,list,watch resource.k8s.io deviceclasses,resourceclaims,resourceslices",
            "patch,update resource.k8s.io resourceclaims,resourceclaims/status",
        ],
    ),
    role(
        "system:kube-controller-manager",
        &[
            super::EVENTS,
            "create,list,watch coordination.k8s.io leases",
            "get,update coordination.k8s.io leases kube-controller-manager",
            "create core secrets,serviceaccounts",
            "delete core secrets",
            "get core configmaps,namespaces,secrets,serviceaccounts",
            "update core secrets,serviceaccounts",
            "create authentication.k8s.io tokenreviews",
            "create authorization.k8s.io subjectaccessreviews",
            "list,watch * *",
            "create core serviceaccounts/token",
        ],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &["create certificates.k8s.io certificatesigningrequests/nodeclient"],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &["create certificates.k8s.io certificatesigningrequests/selfnodeclient"],
    ),
    role(
        "system:k3s-controller",
        &[
            "get,list,watch core nodes",
            "patch core nodes/status",
            "get,list,watch core endpoints,namespaces,pods,services",
            "list,watch networking.k8s.io networkpolicies",
            "get,list,watch discovery.k8s.io endpointslices",
            super::EVENTS,
        ],
    ),
    role(
        "k3s-cloud-controller-manager",
        &[
            "create,get,list,update,watch coordination.k8s.io leases",
            super::EVENTS,
            "* core nodes",
            "patch core nodes/status",
            "create,delete,get,list,patch,update,watch core services",
            "get,list,patch,update,watch core services/status",
            "create,get core serviceaccounts",
            "create,delete,get,list,patch,update,watch core namespaces,pods,secrets",
            "create,delete,get,list,patch,update,watch apps daemonsets",
            "get,list,watch discovery.k8s.io endpointslices",
        ],
    ),
];

const fn bind(name: &'static str, role: &'static str, subjects: &'static [&'static str]) -> Binding {
    Binding { name, role, subjects }
}

/// ClusterRoleBindings that are not a controller's: `user:…`, `group:…`, `account:NAMESPACE:NAME`.
pub const BINDINGS: &[Binding] = &[
    bind("cluster-admin", "cluster-admin", &["group:system:masters"]),
    bind("system:monitoring", "system:monitoring", &["group:system:monitoring"]),
    bind("system:discovery", "system:discovery", &["group:system:authenticated"]),
    bind(
        "system:basic-user",
        "system:basic-user",
        &["group:system:authenticated"],
    ),
    bind(
        "system:public-info-viewer",
        "system:public-info-viewer",
        &["group:system:authenticated", "group:system:unauthenticated"],
    ),
    bind(
        "system:service-account-issuer-discovery",
        "system:service-account-issuer-discovery",
        &["group:system:serviceaccounts"],
    ),
    bind(
        "system:node-proxier",
        "system:node-proxier",
        &["user:system:kube-proxy"],
    ),
    bind(
        "system:kube-controller-manager",
        "system:kube-controller-manager",
        &["user:system:kube-controller-manager"],
    ),
    bind("system:kube-dns", "system:kube-dns", &["account:kube-system:kube-dns"]),
    bind(
        "system:kube-scheduler",
        "system:kube-scheduler",
        &["user:system:kube-scheduler"],
    ),
    bind(
        "system:volume-scheduler",
        "system:volume-scheduler",
        &["user:system:kube-scheduler"],
    ),
    bind("system:node", "system:node", &[]),
    bind(
        "system:k3s-controller",
        "system:k3s-controller",
        &["user:system:k3s-controller"],
    ),
    bind(
        "k3s-cloud-controller-manager",
        "k3s-cloud-controller-manager",
        &["user:k3s-cloud-controller-manager"],
    ),
    bind(
        "kube-apiserver-kubelet-admin",
        "system:kubelet-api-admin",
        &["user:kube-apiserver"],
    ),
];
