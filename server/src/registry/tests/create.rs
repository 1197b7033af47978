//! Creating.

use serde_json::json;

use super::*;
use crate::request::FieldValidation;

#[tokio::test]
async fn a_created_object_has_what_the_server_stamps() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, config_map("a")).await.unwrap();
    assert_eq!(made["apiVersion"], "v1");
    assert_eq!(made["kind"], "ConfigMap");
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["metadata"]["creationTimestamp"], "2027-01-15T08:00:00Z");
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(
        made["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    assert_eq!(cluster.get(named(MAPS, "a")).await.unwrap(), made);
}

#[tokio::test]
async fn what_a_client_may_not_say_is_dropped() {
    let cluster = Cluster::new().await;
    let mut body = deployment("a");
    body["metadata"]["uid"] = "mine".into();
    body["metadata"]["generation"] = 7.into();
    body["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into();
    body["status"] = json!({"replicas": 5});
    let made = cluster.create(DEPLOYMENTS, body).await.unwrap();
    assert_ne!(made["metadata"]["uid"], "mine");
    assert_eq!(made["metadata"]["generation"], 1);
    assert!(made["metadata"].get("deletionTimestamp").is_none());
    assert!(made.get("status").is_none_or(|status| status == &json!({})));
}

#[tokio::test]
async fn a_name_is_given_once() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, config_map("a")).await.unwrap();
    let status = cluster.create(MAPS, config_map("a")).await.unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (409, "configmaps \"a\" already exists")
    );
    assert_eq!(status.reason, "AlreadyExists");
}

#[tokio::test]
async fn a_generated_name_begins_as_asked_and_is_new_each_time() {
    let cluster = Cluster::new().await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let made = cluster
            .create(MAPS, json!({"metadata": {"generateName": "job-"}}))
            .await
            .unwrap();
        let name = made["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("job-") && name.len() == 9, "{name}");
        assert!(seen.insert(name));
    }
}

#[tokio::test]
async fn bad_bodies_are_refused_with_upstreams_words() {
    let cluster = Cluster::new().await;
    for (body, code, text) in [
        (json!([]), 400, "the body of the request is not a JSON object"),
        (
            json!({"apiVersion": "v2", "metadata": {"name": "a"}}),
            400,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
        (
            json!({"kind": "Pod", "metadata": {"name": "a"}}),
            400,
            "the kind in the data (Pod) does not match the expected kind (ConfigMap)",
        ),
        (
            json!({"metadata": {"name": "a", "namespace": "other"}}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            json!({"metadata": {"name": "a", "resourceVersion": "5"}}),
            400,
            "resourceVersion should not be set on objects to be created",
        ),
        (
            json!({}),
            422,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            json!({"metadata": {"name": "A"}}),
            422,
            "ConfigMap \"A\" is invalid: metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters",
        ),
        (
            json!({"metadata": {"name": "a"}, "data": {"x y": "z"}}),
            422,
            "ConfigMap \"a\" is invalid: data[x y]: Invalid value: \"x y\": a valid config key must consist of",
        ),
    ] {
        let status = cluster.create(MAPS, body.clone()).await.unwrap_err();
        assert_eq!(status.code, code, "{body}: {status}");
        assert!(status.message.starts_with(text), "{body}: {status}");
    }
}

#[tokio::test]
async fn faults_are_listed_each_with_its_cause() {
    let cluster = Cluster::new().await;
    let body = json!({"metadata": {"name": "A", "labels": {"x": "not fine"}}});
    let status = cluster.create(MAPS, body).await.unwrap_err();
    assert!(
        status
            .message
            .starts_with("ConfigMap \"A\" is invalid: [metadata.name: Invalid value"),
        "{status}"
    );
    let details = status.details.unwrap();
    assert_eq!(details.kind, "ConfigMap");
    let fields: Vec<&str> = details.causes.iter().map(|cause| cause.field.as_str()).collect();
    assert_eq!(fields, ["metadata.name", "metadata.labels"]);
    assert!(details.causes.iter().all(|cause| cause.reason == "FieldValueInvalid"));
}

#[tokio::test]
async fn unknown_fields_are_refused_reported_or_dropped_as_asked() {
    let cluster = Cluster::new().await;
    let body = json!({"metadata": {"name": "a", "colour": "red"}, "date": {"a": "1"}});
    for (validation, code) in [
        (FieldValidation::Strict, 400),
        (FieldValidation::Warn, 201),
        (FieldValidation::Ignore, 201),
    ] {
        let options = WriteOptions {
            field_validation: validation,
            dry_run: true,
            ..WriteOptions::default()
        };
        let answer = cluster
            .run(
                MAPS,
                Operation::Create {
                    body: body.clone(),
                    options,
                },
            )
            .await;
        match answer {
            Err(status) => {
                assert_eq!(status.code, code);
                assert!(
                    status.message.contains("strict decoding error: unknown field \""),
                    "{status}"
                );
                assert!(status.message.contains("unknown field \"date\""), "{status}");
            }
            Ok(Answer::Object {
                code: got,
                warnings,
                body,
                ..
            }) => {
                assert_eq!(got, code);
                assert_eq!(
                    warnings.len(),
                    if validation == FieldValidation::Warn { 2 } else { 0 },
                    "{warnings:?}"
                );
                let made: Value = serde_json::from_slice(&body).unwrap();
                assert!(made.get("date").is_none() && made["metadata"].get("colour").is_none());
            }
            Ok(_) => panic!("no object"),
        }
    }
}

#[tokio::test]
async fn values_of_the_wrong_type_are_refused() {
    let cluster = Cluster::new().await;
    let mut body = deployment("a");
    body["spec"]["replicas"] = "three".into();
    let status = cluster.create(DEPLOYMENTS, body).await.unwrap_err();
    assert_eq!(status.code, 400);
    assert!(status.message.contains("spec.replicas"), "{status}");
}

#[tokio::test]
async fn a_dry_run_leaves_nothing_behind() {
    let cluster = Cluster::new().await;
    let options = WriteOptions {
        dry_run: true,
        ..strict()
    };
    let operation = |body| Operation::Create {
        body,
        options: options.clone(),
    };
    let made = cluster.object(MAPS, operation(config_map("a"))).await.unwrap();
    assert!(made["metadata"].get("resourceVersion").is_none() && made["metadata"]["uid"].is_string());
    assert_eq!(cluster.get(named(MAPS, "a")).await.unwrap_err().code, 404);
    cluster.create(MAPS, config_map("a")).await.unwrap();
    assert_eq!(
        cluster.object(MAPS, operation(config_map("a"))).await.unwrap_err().code,
        409
    );
}

#[tokio::test]
async fn a_namespace_must_be_there_and_not_going() {
    let cluster = Cluster::new().await;
    let status = cluster
        .create(("configmaps", "nowhere", "", ""), config_map("a"))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (404, "namespaces \"nowhere\" not found")
    );
    cluster
        .create(("namespaces", "", "", ""), json!({"metadata": {"name": "going"}}))
        .await
        .unwrap();
    cluster
        .delete(("namespaces", "", "going", ""), DeleteOptions::default())
        .await
        .unwrap();
    let status = cluster
        .create(("configmaps", "going", "", ""), config_map("a"))
        .await
        .unwrap_err();
    assert_eq!(status.code, 403);
    assert_eq!(
        status.message,
        "configmaps \"a\" is forbidden: unable to create new content in namespace going because it is being terminated"
    );
    assert_eq!(status.details.unwrap().causes[0].reason, "NamespaceTerminating");
    assert_eq!(
        cluster
            .create(("configmaps", "", "", ""), config_map("a"))
            .await
            .unwrap_err()
            .code,
        404
    );
}

#[tokio::test]
async fn every_kind_of_the_table_can_be_made_read_and_removed() {
    let cluster = Cluster::new().await;
    for row in kinds::table().iter().filter(|row| row.verbs.contains(&"delete")) {
        let Some(body) = example((row.group, row.kind)) else {
            continue;
        };
        let called = full_name(row);
        let place = (called.as_str(), if row.namespaced { "default" } else { "" }, "", "");
        let made = cluster
            .create(place, body)
            .await
            .unwrap_or_else(|status| panic!("{}: {status}", row.kind));
        let name = made["metadata"]["name"].as_str().unwrap().to_owned();
        assert_eq!(made["kind"], row.kind);
        assert_eq!(
            made["metadata"].get("generation").is_some(),
            row.generation,
            "{}",
            row.kind
        );
        assert_eq!(cluster.get(named(place, &name)).await.unwrap(), made, "{}", row.kind);
        // Writing back what was read changes nothing.
        assert_eq!(
            cluster.update(named(place, &name), made.clone()).await.unwrap(),
            made,
            "{}",
            row.kind
        );
        cluster
            .delete(named(place, &name), DeleteOptions::default())
            .await
            .unwrap();
    }
}

/// The least that each kind takes; kinds that have it are enough with a name.
fn example((group, kind): (&str, &str)) -> Option<Value> {
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}});
    let workload = json!({"selector": {"matchLabels": {"app": "x"}}, "template": template, "serviceName": "x"});
    let mut body = match kind {
        "Namespace" => return None,
        "Pod" => json!({"spec": template["spec"]}),
        "PodTemplate" => json!({ "template": template }),
        "ReplicationController" => json!({"spec": {"template": template}}),
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            let mut workload = workload;
            workload.as_object_mut().unwrap().remove("serviceName");
            json!({ "spec": workload })
        }
        "StatefulSet" => json!({ "spec": workload }),
        "Job" | "CronJob" => {
            let mut template = template;
            template["spec"]["restartPolicy"] = "Never".into();
            match kind {
                "Job" => json!({"spec": {"template": template}}),
                _ => json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": template}}}}),
            }
        }
        "Service" => json!({"spec": {"ports": [{"port": 80}]}}),
        "PersistentVolumeClaim" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        }
        "PersistentVolume" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}})
        }
        "Event" if group == "events.k8s.io" => {
            json!({"regarding": {"namespace": "default", "kind": "Pod", "name": "x"},
            "eventTime": "2026-11-25T11:00:00.000001Z", "reportingController": "example.com/x", "reportingInstance": "x-1",
            "action": "Test", "reason": "Tested", "type": "Normal"})
        }
        "Event" => json!({"involvedObject": {"namespace": "default", "kind": "Pod", "name": "x"}, "reason": "Tested"}),
        "ClusterRoleBinding" | "RoleBinding" => json!({"roleRef": {"kind": "ClusterRole", "name": "x"}}),
        "StorageClass" => json!({"provisioner": "example.com/x"}),
        "RuntimeClass" => json!({"handler": "x"}),
        "PriorityClass" => json!({"value": 5}),
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": []}),
        "IngressClass" => json!({"spec": {"controller": "example.com/x"}}),
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}}}),
        "HorizontalPodAutoscaler" => {
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}}})
        }
        "CertificateSigningRequest" => {
            json!({"spec": {"signerName": "example.com/x", "request": "eA==", "usages": ["client auth"]}})
        }
        "IPAddress" => {
            let parent = json!({"resource": "services", "namespace": "default", "name": "x"});
            return Some(json!({"metadata": {"name": "10.43.0.99"}, "spec": {"parentRef": parent}}));
        }
        "ControllerRevision" => json!({"revision": 1}),
        "APIService" => {
            return Some(
                json!({"metadata": {"name": "v1.example.com"}, "spec": {"group": "example.com", "version": "v1",
                "groupPriorityMinimum": 100, "versionPriority": 100}}),
            );
        }
        "CustomResourceDefinition" => {
            return Some(
                json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
                "names": {"plural": "widgets", "kind": "Widget"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
            );
        }
        _ => json!({}),
    };
    body["metadata"] = json!({"name": "x"});
    Some(body)
}
