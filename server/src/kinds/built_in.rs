//! The table: one row per built-in resource of Kubernetes v1.36 (GA versions; no beta is served by default).
//!
//! Order is the order of discovery. Store prefixes are upstream's (`kubeapiserver/default_storage_factory_builder.go`,
//! `SpecialDefaultResourcePrefixes`), so that a datastore can be moved. Short names and categories are kubectl's vocabulary.

use crate::registry::resource::{Names, NoRules, Resource, Rules, SelectableField, Subresource};

const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const SCALE_KIND: (&str, &str, &str) = ("autoscaling", "v1", "Scale");
const STATUS: Subresource = sub("status", READ_WRITE);
const SCALE: Subresource = sub_of("scale", SCALE_KIND, READ_WRITE);
const ONLY_STATUS: &[Subresource] = &[STATUS];
const SCALED: &[Subresource] = &[SCALE, STATUS];
const NODE_SUBRESOURCES: &[Subresource] = &[sub_of("proxy", ("", "v1", "NodeProxyOptions"), PROXY), STATUS];
const SERVICE_SUBRESOURCES: &[Subresource] = &[sub_of("proxy", ("", "v1", "ServiceProxyOptions"), PROXY), STATUS];
const POD_SUBRESOURCES: &[Subresource] = &[
    sub_of("attach", ("", "v1", "PodAttachOptions"), CONNECT),
    sub_of("binding", ("", "v1", "Binding"), CREATE),
    sub("ephemeralcontainers", READ_WRITE),
    sub_of("eviction", ("policy", "v1", "Eviction"), CREATE),
    sub_of("exec", ("", "v1", "PodExecOptions"), CONNECT),
    sub("log", &["get"]),
    sub_of("portforward", ("", "v1", "PodPortForwardOptions"), CONNECT),
    sub_of("proxy", ("", "v1", "PodProxyOptions"), PROXY),
    sub("resize", READ_WRITE),
    STATUS,
];
const TOKEN: &[Subresource] = &[sub_of("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)];
const CSR_SUBRESOURCES: &[Subresource] = &[sub("approval", READ_WRITE), STATUS];
const NAMESPACE_SUBRESOURCES: &[Subresource] = &[sub("finalize", &["update"]), STATUS];

const POD_FIELDS: &[SelectableField] = &[
    field("spec.nodeName", &["spec", "nodeName"]),
    field("spec.restartPolicy", &["spec", "restartPolicy"]),
    field("spec.schedulerName", &["spec", "schedulerName"]),
    field("spec.serviceAccountName", &["spec", "serviceAccountName"]),
    field("spec.hostNetwork", &["spec", "hostNetwork"]).or("false"),
    field("status.phase", &["status", "phase"]),
    field("status.podIP", &["status", "podIP"]),
    field("status.nominatedNodeName", &["status", "nominatedNodeName"]),
];
const EVENT_FIELDS: &[SelectableField] = &[
    field("involvedObject.kind", &["involvedObject", "kind"]),
    field("involvedObject.namespace", &["involvedObject", "namespace"]),
    field("involvedObject.name", &["involvedObject", "name"]),
    field("involvedObject.uid", &["involvedObject", "uid"]),
    field("involvedObject.apiVersion", &["involvedObject", "apiVersion"]),
    field("involvedObject.resourceVersion", &["involvedObject", "resourceVersion"]),
    field("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
    field("reason", &["reason"]),
    field("reportingComponent", &["reportingComponent"]),
    field("source", &["source", "component"]),
    field("type", &["type"]),
];
const SERVICE_FIELDS: &[SelectableField] = &[
    field("spec.clusterIP", &["spec", "clusterIP"]),
    field("spec.type", &["spec", "type"]),
];
const NODE_FIELDS: &[SelectableField] = &[field("spec.unschedulable", &["spec", "unschedulable"]).or("false")];
const PHASE: &[SelectableField] = &[field("status.phase", &["status", "phase"])];
const TYPE: &[SelectableField] = &[field("type", &["type"])];
const REPLICAS: &[SelectableField] = &[field("status.replicas", &["status", "replicas"]).or("0")];
const SUCCESSFUL: &[SelectableField] = &[field("status.successful", &["status", "succeeded"]).or("0")];
const SIGNER: &[SelectableField] = &[field("spec.signerName", &["spec", "signerName"])];
const SLICE_FIELDS: &[SelectableField] = &[
    field("spec.nodeName", &["spec", "nodeName"]),
    field("spec.driver", &["spec", "driver"]),
];

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const DEVICES: &str = "resource.k8s.io";

/// Every row, in discovery order.
pub(super) fn rows() -> Vec<Resource> {
    let mut rows = core();
    rows.extend(workloads());
    rows.extend(reviews());
    rows.extend(networking_policy_rbac());
    rows.extend(storage_and_admission());
    rows.extend(the_rest());
    rows
}

fn core() -> Vec<Resource> {
    vec![
        virtual_kind("", "Binding", "bindings", true),
        namespaced("", "ConfigMap", "configmaps").short(&["cm"]),
        namespaced("", "Endpoints", "endpoints")
            .singular("endpoints")
            .short(&["ep"])
            .stored("services/endpoints")
            .created_by_update(),
        namespaced("", "Event", "events")
            .short(&["ev"])
            .fields(EVENT_FIELDS)
            .created_by_update(),
        namespaced("", "LimitRange", "limitranges")
            .short(&["limits"])
            .created_by_update(),
        cluster("", "Namespace", "namespaces")
            .short(&["ns"])
            .verbs(NO_COLLECTION)
            .subresources(NAMESPACE_SUBRESOURCES)
            .fields(PHASE)
            .names(Names::Label),
        cluster("", "Node", "nodes")
            .short(&["no"])
            .subresources(NODE_SUBRESOURCES)
            .fields(NODE_FIELDS)
            .stored("minions"),
        namespaced("", "PersistentVolumeClaim", "persistentvolumeclaims")
            .short(&["pvc"])
            .subresources(ONLY_STATUS)
            .returns_deleted(),
        cluster("", "PersistentVolume", "persistentvolumes")
            .short(&["pv"])
            .subresources(ONLY_STATUS)
            .returns_deleted(),
        namespaced("", "Pod", "pods")
            .short(&["po"])
            .categories(&["all"])
            .subresources(POD_SUBRESOURCES)
            .fields(POD_FIELDS)
            .counted()
            .returns_deleted(),
        namespaced("", "PodTemplate", "podtemplates")
            .counted()
            .returns_deleted(),
        namespaced("", "ReplicationController", "replicationcontrollers")
            .short(&["rc"])
            .categories(&["all"])
            .subresources(SCALED)
            .fields(REPLICAS)
            .stored("controllers")
            .counted()
            .orphans(),
        namespaced("", "ResourceQuota", "resourcequotas")
            .short(&["quota"])
            .subresources(ONLY_STATUS),
        namespaced("", "Secret", "secrets").fields(TYPE),
        namespaced("", "ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .subresources(TOKEN)
            .returns_deleted(),
        namespaced("", "Service", "services")
            .short(&["svc"])
            .categories(&["all"])
            .subresources(SERVICE_SUBRESOURCES)
            .fields(SERVICE_FIELDS)
            .stored("services/specs")
            .names(Names::LabelWithLetter)
            .created_by_update()
            .returns_deleted(),
    ]
}

fn workloads() -> Vec<Resource> {
    vec![
        cluster("apiregistration.k8s.io", "APIService", "apiservices")
            .categories(&["api-extensions"])
            .subresources(ONLY_STATUS)
            .stored("apiregistration.k8s.io/apiservices")
            .conditional(),
        namespaced("apps", "ControllerRevision", "controllerrevisions"),
        namespaced("apps", "DaemonSet", "daemonsets")
            .short(&["ds"])
            .categories(&["all"])
            .subresources(ONLY_STATUS)
            .counted(),
        namespaced("apps", "Deployment", "deployments")
            .short(&["deploy"])
            .categories(&["all"])
            .subresources(SCALED)
            .counted(),
        namespaced("apps", "ReplicaSet", "replicasets")
            .short(&["rs"])
            .categories(&["all"])
            .subresources(SCALED)
            .fields(REPLICAS)
            .counted(),
        namespaced("apps", "StatefulSet", "statefulsets")
            .short(&["sts"])
            .categories(&["all"])
            .subresources(SCALED)
            .counted(),
        namespaced("autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .version("v2")
            .short(&["hpa"])
            .categories(&["all"])
            .subresources(ONLY_STATUS),
        namespaced("batch", "CronJob", "cronjobs")
            .short(&["cj"])
            .categories(&["all"])
            .subresources(ONLY_STATUS)
            .counted(),
        namespaced("batch", "Job", "jobs")
            .categories(&["all"])
            .subresources(ONLY_STATUS)
            .fields(SUCCESSFUL)
            .counted()
            .orphans(),
    ]
}

/// Answered by the authenticator and the authorizer; nothing is stored.
fn reviews() -> Vec<Resource> {
    vec![
        virtual_kind(AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews", false),
        virtual_kind(AUTHENTICATION, "TokenReview", "tokenreviews", false),
        virtual_kind(
            AUTHORIZATION,
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            true,
        ),
        virtual_kind(
            AUTHORIZATION,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            false,
        ),
        virtual_kind(
            AUTHORIZATION,
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            false,
        ),
        virtual_kind(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", false),
    ]
}

fn networking_policy_rbac() -> Vec<Resource> {
    vec![
        cluster(
            "certificates.k8s.io",
            "CertificateSigningRequest",
            "certificatesigningrequests",
        )
        .short(&["csr"])
        .subresources(CSR_SUBRESOURCES)
        .fields(SIGNER),
        cluster(NETWORKING, "IngressClass", "ingressclasses")
            .singular("ingressclass")
            .counted(),
        namespaced(NETWORKING, "Ingress", "ingresses")
            .short(&["ing"])
            .subresources(ONLY_STATUS)
            .stored("ingress")
            .counted(),
        cluster(NETWORKING, "IPAddress", "ipaddresses").short(&["ip"]),
        namespaced(NETWORKING, "NetworkPolicy", "networkpolicies")
            .short(&["netpol"])
            .counted(),
        cluster(NETWORKING, "ServiceCIDR", "servicecidrs").subresources(ONLY_STATUS),
        namespaced("policy", "PodDisruptionBudget", "poddisruptionbudgets")
            .short(&["pdb"])
            .subresources(ONLY_STATUS)
            .counted()
            .conditional(),
        cluster(RBAC, "ClusterRoleBinding", "clusterrolebindings")
            .names(Names::PathSegment)
            .created_by_update(),
        cluster(RBAC, "ClusterRole", "clusterroles")
            .names(Names::PathSegment)
            .created_by_update(),
        namespaced(RBAC, "RoleBinding", "rolebindings")
            .names(Names::PathSegment)
            .created_by_update(),
        namespaced(RBAC, "Role", "roles")
            .names(Names::PathSegment)
            .created_by_update(),
    ]
}

fn storage_and_admission() -> Vec<Resource> {
    let extends = &["api-extensions"];
    vec![
        cluster(STORAGE, "CSIDriver", "csidrivers").counted(),
        cluster(STORAGE, "CSINode", "csinodes"),
        namespaced(STORAGE, "CSIStorageCapacity", "csistoragecapacities"),
        cluster(STORAGE, "StorageClass", "storageclasses").short(&["sc"]),
        cluster(STORAGE, "VolumeAttachment", "volumeattachments").subresources(ONLY_STATUS),
        cluster(STORAGE, "VolumeAttributesClass", "volumeattributesclasses").short(&["vac"]),
        cluster(ADMISSION, "MutatingAdmissionPolicy", "mutatingadmissionpolicies")
            .categories(extends)
            .counted(),
        cluster(
            ADMISSION,
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybindings",
        )
        .categories(extends)
        .counted(),
        cluster(
            ADMISSION,
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
        )
        .categories(extends)
        .counted(),
        cluster(ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            .categories(extends)
            .subresources(ONLY_STATUS)
            .counted(),
        cluster(
            ADMISSION,
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        )
        .categories(extends)
        .counted(),
        cluster(
            ADMISSION,
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
        )
        .categories(extends)
        .counted(),
        cluster(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        )
        .short(&["crd", "crds"])
        .categories(extends)
        .subresources(ONLY_STATUS)
        .stored("apiextensions.k8s.io/customresourcedefinitions")
        .counted()
        .conditional(),
    ]
}

fn the_rest() -> Vec<Resource> {
    vec![
        cluster("scheduling.k8s.io", "PriorityClass", "priorityclasses")
            .short(&["pc"])
            .counted(),
        namespaced("coordination.k8s.io", "Lease", "leases")
            .created_by_update()
            .conditional(),
        cluster("node.k8s.io", "RuntimeClass", "runtimeclasses"),
        namespaced("discovery.k8s.io", "EndpointSlice", "endpointslices").counted(),
        cluster(FLOW, "FlowSchema", "flowschemas")
            .subresources(ONLY_STATUS)
            .counted(),
        cluster(FLOW, "PriorityLevelConfiguration", "prioritylevelconfigurations")
            .subresources(ONLY_STATUS)
            .counted(),
        cluster(DEVICES, "DeviceClass", "deviceclasses").counted().conditional(),
        namespaced(DEVICES, "ResourceClaim", "resourceclaims")
            .subresources(ONLY_STATUS)
            .conditional(),
        namespaced(DEVICES, "ResourceClaimTemplate", "resourceclaimtemplates").conditional(),
        cluster(DEVICES, "ResourceSlice", "resourceslices")
            .fields(SLICE_FIELDS)
            .counted()
            .conditional(),
    ]
}

const fn sub(name: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource {
        name,
        kind: None,
        verbs,
    }
}

const fn sub_of(
    name: &'static str,
    kind: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        kind: Some(kind),
        verbs,
    }
}

const fn field(name: &'static str, path: &'static [&'static str]) -> SelectableField {
    SelectableField { name, path, absent: "" }
}

impl SelectableField {
    const fn or(mut self, absent: &'static str) -> Self {
        self.absent = absent;
        self
    }
}

fn namespaced(group: &'static str, kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        namespaced: true,
        ..cluster(group, kind, plural)
    }
}

fn cluster(group: &'static str, kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        group,
        version: "v1",
        kind,
        plural,
        singular: kind.to_lowercase().leak(),
        short: &[],
        categories: &[],
        namespaced: false,
        subresources: &[],
        verbs: ALL_VERBS,
        fields: &[],
        prefix: format!("/registry/{plural}/").leak(),
        names: Names::Subdomain,
        generation: false,
        create_on_update: false,
        unconditional_update: true,
        returns_deleted: false,
        orphans: false,
        rules: &NoRules,
    }
}

fn virtual_kind(group: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Resource {
    Resource {
        namespaced,
        verbs: CREATE,
        ..cluster(group, kind, plural)
    }
}

/// The words the table is written in. Strings are leaked once per process: rows live for ever.
impl Resource {
    fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }
    fn singular(mut self, singular: &'static str) -> Self {
        self.singular = singular;
        self
    }
    fn short(mut self, short: &'static [&'static str]) -> Self {
        self.short = short;
        self
    }
    fn categories(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }
    fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }
    fn subresources(mut self, subresources: &'static [Subresource]) -> Self {
        self.subresources = subresources;
        self
    }
    fn fields(mut self, fields: &'static [SelectableField]) -> Self {
        self.fields = fields;
        self
    }
    fn stored(mut self, place: &str) -> Self {
        self.prefix = format!("/registry/{place}/").leak();
        self
    }
    fn names(mut self, names: Names) -> Self {
        self.names = names;
        self
    }
    fn counted(mut self) -> Self {
        self.generation = true;
        self
    }
    fn created_by_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }
    fn conditional(mut self) -> Self {
        self.unconditional_update = false;
        self
    }
    fn returns_deleted(mut self) -> Self {
        self.returns_deleted = true;
        self
    }
    fn orphans(mut self) -> Self {
        self.orphans = true;
        self
    }
    #[expect(dead_code, reason = "rules follow in the next change")]
    fn rules(mut self, rules: &'static dyn Rules) -> Self {
        self.rules = rules;
        self
    }
}
