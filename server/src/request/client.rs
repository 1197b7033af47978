//! The API for those who live in this process: controllers, scheduler, supervisor. Each is a user like any other.

use std::sync::Arc;

use agent::wire::status::{Reason, Status};
use bytes::Bytes;
use serde_json::Value;

use super::{Answer, Api, Call, DeleteOptions, ListOptions, Operation, Patch, Target, User, WriteOptions};
use crate::cache::{Filter, From, Page, Watch};

/// A resource by name.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct What {
    /// Empty for core.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `pods`.
    pub plural: &'static str,
}

macro_rules! resources {
    ($($name:ident = $group:literal, $version:literal, $plural:literal;)*) => {
        $(
            #[doc = concat!("`", $plural, "` of `", $group, "/", $version, "`.")]
            pub const $name: What = What { group: $group, version: $version, plural: $plural };
        )*
    };
}

impl What {
    resources! {
        PODS = "", "v1", "pods";
        NODES = "", "v1", "nodes";
        NAMESPACES = "", "v1", "namespaces";
        SERVICES = "", "v1", "services";
        IP_ADDRESSES = "networking.k8s.io", "v1", "ipaddresses";
        ENDPOINTS = "", "v1", "endpoints";
        SECRETS = "", "v1", "secrets";
        CONFIG_MAPS = "", "v1", "configmaps";
        SERVICE_ACCOUNTS = "", "v1", "serviceaccounts";
        EVENTS = "", "v1", "events";
        REPLICATION_CONTROLLERS = "", "v1", "replicationcontrollers";
        PERSISTENT_VOLUMES = "", "v1", "persistentvolumes";
        PERSISTENT_VOLUME_CLAIMS = "", "v1", "persistentvolumeclaims";
        RESOURCE_QUOTAS = "", "v1", "resourcequotas";
        LIMIT_RANGES = "", "v1", "limitranges";
        DEPLOYMENTS = "apps", "v1", "deployments";
        REPLICA_SETS = "apps", "v1", "replicasets";
        STATEFUL_SETS = "apps", "v1", "statefulsets";
        DAEMON_SETS = "apps", "v1", "daemonsets";
        CONTROLLER_REVISIONS = "apps", "v1", "controllerrevisions";
        JOBS = "batch", "v1", "jobs";
        CRON_JOBS = "batch", "v1", "cronjobs";
        LEASES = "coordination.k8s.io", "v1", "leases";
        ENDPOINT_SLICES = "discovery.k8s.io", "v1", "endpointslices";
        CERTIFICATE_SIGNING_REQUESTS = "certificates.k8s.io", "v1", "certificatesigningrequests";
        ROLES = "rbac.authorization.k8s.io", "v1", "roles";
        ROLE_BINDINGS = "rbac.authorization.k8s.io", "v1", "rolebindings";
        CLUSTER_ROLES = "rbac.authorization.k8s.io", "v1", "clusterroles";
        CLUSTER_ROLE_BINDINGS = "rbac.authorization.k8s.io", "v1", "clusterrolebindings";
        PRIORITY_CLASSES = "scheduling.k8s.io", "v1", "priorityclasses";
        STORAGE_CLASSES = "storage.k8s.io", "v1", "storageclasses";
        CSI_NODES = "storage.k8s.io", "v1", "csinodes";
        NETWORK_POLICIES = "networking.k8s.io", "v1", "networkpolicies";
        INGRESSES = "networking.k8s.io", "v1", "ingresses";
        POD_DISRUPTION_BUDGETS = "policy", "v1", "poddisruptionbudgets";
        HORIZONTAL_POD_AUTOSCALERS = "autoscaling", "v2", "horizontalpodautoscalers";
    }
}

/// One user's hand on the API, in memory.
#[derive(Clone)]
pub struct Client {
    api: Arc<Api>,
    user: Arc<User>,
}

impl Client {
    /// The API as this user.
    pub fn new(api: Arc<Api>, user: User) -> Self {
        Self {
            api,
            user: Arc::new(user),
        }
    }

    /// One object.
    ///
    /// # Errors
    /// The API's [`Status`], as over HTTP; so for every method here.
    pub async fn get(&self, what: What, namespace: &str, name: &str) -> Result<Value, Status> {
        let operation = Operation::Get { resource_version: None };
        self.object(what, namespace, name, None, operation).await
    }

    /// All that match, in one namespace or (`None`) everywhere; unparsed.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn list(&self, what: What, namespace: Option<&str>, filter: Filter) -> Result<Page, Status> {
        let options = ListOptions {
            filter,
            ..ListOptions::default()
        };
        match self
            .call(what, namespace.unwrap_or_default(), "", None, Operation::List(options))
            .await?
        {
            Answer::List { page, .. } => Ok(page),
            _ => Err(unexpected("list")),
        }
    }

    /// What happens to those that match, with a bookmark at the end of the initial state when `from` asks for it.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn watch(
        &self,
        what: What,
        namespace: Option<&str>,
        filter: Filter,
        from: From,
    ) -> Result<Watch, Status> {
        let operation = Operation::Watch {
            filter,
            from,
            bookmarks: true,
        };
        match self
            .call(what, namespace.unwrap_or_default(), "", None, operation)
            .await?
        {
            Answer::Watch(watch) => Ok(watch),
            _ => Err(unexpected("watch")),
        }
    }

    /// Creates; the answer has what the server filled in.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn create(&self, what: What, namespace: &str, body: Value) -> Result<Value, Status> {
        let options = self.options();
        self.object(what, namespace, "", None, Operation::Create { body, options })
            .await
    }

    /// Creates in the place of the object of that name, as it was at this `resourceVersion`, in one write: at no moment is
    /// the name nobody's. For objects that nothing keeps from being deleted; watchers see a change, to an object of another
    /// uid.
    ///
    /// # Errors
    /// As [`Client::get`]; `AlreadyExists` when another object, or none, has the name by now, or that one has changed.
    pub async fn replace(&self, what: What, namespace: &str, version: &str, body: Value) -> Result<Value, Status> {
        let mut options = self.options();
        options.instead_of = Some(version.to_owned());
        self.object(what, namespace, "", None, Operation::Create { body, options })
            .await
    }

    /// Creates a subresource: `binding`, `eviction`, `token`.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn create_sub(
        &self,
        what: What,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: Value,
    ) -> Result<Value, Status> {
        let options = self.options();
        let operation = Operation::Create { body, options };
        self.object(what, namespace, name, Some(subresource), operation).await
    }

    /// Replaces; a `resourceVersion` in the body must be the present one.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn update(&self, what: What, namespace: &str, name: &str, body: Value) -> Result<Value, Status> {
        let options = self.options();
        self.object(what, namespace, name, None, Operation::Update { body, options })
            .await
    }

    /// Replaces the object or, through a subresource, its part of it.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn update_sub(
        &self,
        what: What,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        body: Value,
    ) -> Result<Value, Status> {
        let options = self.options();
        let operation = Operation::Update { body, options };
        self.object(what, namespace, name, subresource, operation).await
    }

    /// Replaces the status.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn update_status(&self, what: What, namespace: &str, name: &str, body: Value) -> Result<Value, Status> {
        let options = self.options();
        let operation = Operation::Update { body, options };
        self.object(what, namespace, name, Some("status"), operation).await
    }

    /// Patches the object or a subresource of it.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn patch(
        &self,
        what: What,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        patch: Patch,
    ) -> Result<Value, Status> {
        let options = self.options();
        let operation = Operation::Patch { patch, options };
        self.object(what, namespace, name, subresource, operation).await
    }

    /// Deletes; the answer is the object or a success `Status`.
    #[expect(clippy::missing_errors_doc, reason = "said once, at `get`")]
    pub async fn delete(
        &self,
        what: What,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Value, Status> {
        self.object(what, namespace, name, None, Operation::Delete(options))
            .await
    }

    fn options(&self) -> WriteOptions {
        let manager = self.user.name.rsplit(':').next().unwrap_or_default();
        WriteOptions {
            field_manager: manager.to_owned(),
            ..WriteOptions::default()
        }
    }

    async fn call(
        &self,
        what: What,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        operation: Operation,
    ) -> Result<Answer, Status> {
        let resource = self
            .api
            .find(what.group, what.version, what.plural)
            .ok_or_else(Status::no_such_route)?;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let target = Target {
            resource,
            namespace: some(namespace),
            name: some(name),
            subresource: subresource.map(ToOwned::to_owned),
        };
        let user = self.user.clone();
        let reads = operation.reads();
        let call = Call {
            user,
            target,
            operation,
        };
        let answer = self.api.call(call).await?;
        if !reads {
            // Controllers decide anew from what they read: a plan must not miss what the one before it did.
            self.api.settled().await;
        }
        Ok(answer)
    }

    async fn object(
        &self,
        what: What,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        operation: Operation,
    ) -> Result<Value, Status> {
        match self.call(what, namespace, name, subresource, operation).await? {
            Answer::Object { body, .. } => parse(&body),
            Answer::Status(status) => serde_json::to_value(status).map_err(Status::internal),
            Answer::List { .. } | Answer::Watch(_) => Err(unexpected("object")),
        }
    }
}

fn parse(body: &Bytes) -> Result<Value, Status> {
    serde_json::from_slice(body).map_err(Status::internal)
}

fn unexpected(wanted: &str) -> Status {
    Status::failure(
        Reason::InternalError,
        format!("the registry did not answer with a {wanted}"),
    )
}
