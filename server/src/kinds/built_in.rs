//! The table: one row per built-in resource of Kubernetes v1.36 (GA versions; no beta is served by default).
//!
//! Order is the order of discovery. Store prefixes are upstream's (`kubeapiserver/default_storage_factory_builder.go`,
//! `SpecialDefaultResourcePrefixes`), so that a datastore can be moved. Short names and categories are kubectl's vocabulary.

use super::{
    autoscaler, batch, data, event, extension, grant, heartbeat, namespace, network, node, pod, policy, service,
    volume, workload,
};
use crate::registry::resource::{Absent, Names, NoRules, Resource, Rules, SelectableField, Subresource, View};

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
    field("source", &["source", "component"]).or_as("reportingComponent"),
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
    let views = views(&rows);
    rows.extend(views);
    rows
}

/// What is served in a second group or version, beside the rows that it is stored by.
fn views(rows: &[Resource]) -> Vec<Resource> {
    let view = |group, version, view: &'static View| {
        let stored = |row: &&Resource| (row.group, row.version, row.plural) == view.of;
        rows.iter().find(stored).map(|stored| Resource {
            group,
            version,
            view: Some(view),
            ..stored.clone()
        })
    };
    let views = [
        view("events.k8s.io", "v1", &event::VIEW),
        view("autoscaling", "v1", &autoscaler::VIEW),
    ];
    views.into_iter().flatten().collect()
}

fn core() -> Vec<Resource> {
    vec![
        virtual_kind("", "Binding", "bindings", true),
        namespaced("", "ConfigMap", "configmaps")
            .rules(&data::ConfigMap)
            .short(&["cm"]),
        namespaced("", "Endpoints", "endpoints")
            .rules(&network::Endpoints)
            .singular("endpoints")
            .short(&["ep"])
            .stored("services/endpoints")
            .created_by_update(),
        namespaced("", "Event", "events")
            .rules(&event::Event)
            .short(&["ev"])
            .fields(EVENT_FIELDS)
            .created_by_update(),
        namespaced("", "LimitRange", "limitranges")
            .rules(&policy::Limits)
            .short(&["limits"])
            .created_by_update(),
        cluster("", "Namespace", "namespaces")
            .rules(&namespace::Namespace)
            .short(&["ns"])
            .verbs(NO_COLLECTION)
            .subresources(NAMESPACE_SUBRESOURCES)
            .fields(PHASE)
            .names(Names::Label),
        cluster("", "Node", "nodes")
            .rules(&node::Node)
            .short(&["no"])
            .subresources(NODE_SUBRESOURCES)
            .fields(NODE_FIELDS)
            .stored("minions"),
        namespaced("", "PersistentVolumeClaim", "persistentvolumeclaims")
            .rules(&volume::Claim)
            .short(&["pvc"])
            .subresources(ONLY_STATUS)
            .returns_deleted(),
        cluster("", "PersistentVolume", "persistentvolumes")
            .rules(&volume::Volume)
            .short(&["pv"])
            .subresources(ONLY_STATUS)
            .returns_deleted(),
        namespaced("", "Pod", "pods")
            .rules(&pod::Pod)
            .short(&["po"])
            .categories(&["all"])
            .subresources(POD_SUBRESOURCES)
            .fields(POD_FIELDS)
            .counted()
            .returns_deleted(),
        namespaced("", "PodTemplate", "podtemplates")
            .rules(&workload::PodTemplate)
            .counted()
            .returns_deleted(),
        namespaced("", "ReplicationController", "replicationcontrollers")
            .rules(&workload::ReplicationController)
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
        namespaced("", "Secret", "secrets").rules(&data::Secret).fields(TYPE),
        namespaced("", "ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .subresources(TOKEN)
            .returns_deleted(),
        namespaced("", "Service", "services")
            .rules(&service::Service)
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
            .rules(&extension::ApiService)
            .categories(&["api-extensions"])
            .subresources(ONLY_STATUS)
            .stored("apiregistration.k8s.io/apiservices")
            .conditional(),
        namespaced("apps", "ControllerRevision", "controllerrevisions").rules(&workload::ControllerRevision),
        namespaced("apps", "DaemonSet", "daemonsets")
            .rules(&workload::DaemonSet)
            .short(&["ds"])
            .categories(&["all"])
            .subresources(ONLY_STATUS)
            .counted(),
        namespaced("apps", "Deployment", "deployments")
            .rules(&workload::Deployment)
            .short(&["deploy"])
            .categories(&["all"])
            .subresources(SCALED)
            .counted(),
        namespaced("apps", "ReplicaSet", "replicasets")
            .rules(&workload::ReplicaSet)
            .short(&["rs"])
            .categories(&["all"])
            .subresources(SCALED)
            .fields(REPLICAS)
            .counted(),
        namespaced("apps", "StatefulSet", "statefulsets")
            .rules(&workload::StatefulSet)
            .short(&["sts"])
            .categories(&["all"])
            .subresources(SCALED)
            .counted(),
        namespaced("autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .rules(&policy::Autoscaler)
            .version("v2")
            .short(&["hpa"])
            .categories(&["all"])
            .subresources(ONLY_STATUS),
        namespaced("batch", "CronJob", "cronjobs")
            .rules(&batch::CronJob)
            .short(&["cj"])
            .categories(&["all"])
            .subresources(ONLY_STATUS)
            .counted(),
        namespaced("batch", "Job", "jobs")
            .rules(&batch::Job)
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
        .rules(&grant::CertificateRequest)
        .short(&["csr"])
        .subresources(CSR_SUBRESOURCES)
        .fields(SIGNER),
        cluster(NETWORKING, "IngressClass", "ingressclasses")
            .rules(&network::IngressClass)
            .singular("ingressclass")
            .counted(),
        namespaced(NETWORKING, "Ingress", "ingresses")
            .rules(&network::Ingress)
            .short(&["ing"])
            .subresources(ONLY_STATUS)
            .stored("ingress")
            .counted(),
        cluster(NETWORKING, "IPAddress", "ipaddresses")
            .rules(&network::Address)
            .short(&["ip"])
            .names(Names::PathSegment),
        namespaced(NETWORKING, "NetworkPolicy", "networkpolicies")
            .rules(&network::NetworkPolicy)
            .short(&["netpol"])
            .counted(),
        cluster(NETWORKING, "ServiceCIDR", "servicecidrs").subresources(ONLY_STATUS),
        namespaced("policy", "PodDisruptionBudget", "poddisruptionbudgets")
            .rules(&policy::Budget)
            .short(&["pdb"])
            .subresources(ONLY_STATUS)
            .counted()
            .conditional(),
        cluster(RBAC, "ClusterRoleBinding", "clusterrolebindings")
            .rules(&grant::Binding { cluster: true })
            .names(Names::PathSegment)
            .created_by_update(),
        cluster(RBAC, "ClusterRole", "clusterroles")
            .rules(&grant::Role)
            .names(Names::PathSegment)
            .created_by_update(),
        namespaced(RBAC, "RoleBinding", "rolebindings")
            .rules(&grant::Binding { cluster: false })
            .names(Names::PathSegment)
            .created_by_update(),
        namespaced(RBAC, "Role", "roles")
            .rules(&grant::Role)
            .names(Names::PathSegment)
            .created_by_update(),
    ]
}

fn storage_and_admission() -> Vec<Resource> {
    let extends = &["api-extensions"];
    vec![
        cluster(STORAGE, "CSIDriver", "csidrivers")
            .rules(&volume::Driver)
            .counted(),
        cluster(STORAGE, "CSINode", "csinodes"),
        namespaced(STORAGE, "CSIStorageCapacity", "csistoragecapacities"),
        cluster(STORAGE, "StorageClass", "storageclasses")
            .rules(&volume::StorageClass)
            .short(&["sc"]),
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
        .rules(&extension::Webhooks { mutating: true })
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
        .rules(&extension::Webhooks { mutating: false })
        .categories(extends)
        .counted(),
        cluster(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        )
        .rules(&extension::Definition)
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
            .rules(&policy::PriorityClass)
            .short(&["pc"])
            .counted(),
        namespaced("coordination.k8s.io", "Lease", "leases")
            .rules(&heartbeat::Lease)
            .created_by_update()
            .conditional(),
        cluster("node.k8s.io", "RuntimeClass", "runtimeclasses").rules(&policy::RuntimeClass),
        namespaced("discovery.k8s.io", "EndpointSlice", "endpointslices")
            .rules(&network::EndpointSlice)
            .counted(),
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
    SelectableField {
        name,
        path,
        absent: Absent::Is(""),
    }
}

impl SelectableField {
    const fn or(mut self, absent: &'static str) -> Self {
        self.absent = Absent::Is(absent);
        self
    }
    const fn or_as(mut self, field: &'static str) -> Self {
        self.absent = Absent::As(field);
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
        view: None,
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
    fn rules(mut self, rules: &'static dyn Rules) -> Self {
        self.rules = rules;
        self
    }
}
