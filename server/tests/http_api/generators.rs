//! The kubectl commands that make objects of their own: they send protobuf.

use serde_json::json;

use crate::rig::Rig;

/// Commands in their order, with all that each prints.
const COMMANDS: &[(&str, &str)] = &[
    ("create namespace lab", "namespace/lab created"),
    (
        "create deployment web --image=example.org/web:1 --replicas=2 --port=80",
        "deployment.apps/web created",
    ),
    ("create configmap conf --from-literal=a=1", "configmap/conf created"),
    ("create secret generic pass --from-literal=a=1", "secret/pass created"),
    ("create service clusterip front --tcp=80:8080", "service/front created"),
    ("create serviceaccount robot", "serviceaccount/robot created"),
    (
        "create role reader --verb=get,list --resource=pods",
        "role.rbac.authorization.k8s.io/reader created",
    ),
    (
        "create rolebinding readers --role=reader --serviceaccount=default:robot",
        "rolebinding.rbac.authorization.k8s.io/readers created",
    ),
    (
        "create clusterrole viewer --verb=get --resource=nodes",
        "clusterrole.rbac.authorization.k8s.io/viewer created",
    ),
    (
        "create clusterrolebinding viewers --clusterrole=viewer --user=jane",
        "clusterrolebinding.rbac.authorization.k8s.io/viewers created",
    ),
    (
        "create job once --image=example.org/job:1 -- run",
        "job.batch/once created",
    ),
    (
        "create cronjob often --image=example.org/job:1 --schedule=@hourly -- run",
        "cronjob.batch/often created",
    ),
    ("create quota few --hard=pods=2,cpu=1", "resourcequota/few created"),
    (
        "create poddisruptionbudget keep --selector=app=web --min-available=50%",
        "poddisruptionbudget.policy/keep created",
    ),
    (
        "create ingress way --rule=example.org/*=front:80",
        "ingress.networking.k8s.io/way created",
    ),
    (
        "create priorityclass high --value=1000 --description=first",
        "priorityclass.scheduling.k8s.io/high created",
    ),
    (
        "run one --image=example.org/one:1 --restart=Never --port=80",
        "pod/one created",
    ),
    ("expose deployment web --port=80", "service/web exposed"),
    ("label configmap conf tier=x", "configmap/conf labeled"),
    ("annotate configmap conf note=y", "configmap/conf annotated"),
    ("create -f -", "node/box created"),
    ("taint nodes box gpu=yes:NoSchedule", "node/box tainted"),
    ("auth can-i get pods", "yes"),
    ("auth can-i get pods --as=system:serviceaccount:default:robot", "yes"),
    (
        "delete priorityclass high",
        "priorityclass.scheduling.k8s.io \"high\" deleted",
    ),
];

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: box}\n";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_makes_objects_of_every_kind_it_knows() {
    let rig = Rig::start().await;
    let kubectl = rig.kubectl();
    for (command, expected) in COMMANDS {
        let got = kubectl.run(command, NODE).await;
        assert_eq!(got, (true, format!("{expected}\n")), "kubectl {command}");
    }
    for (command, expected) in [
        (
            "create deployment web --image=example.org/web:2",
            "error: failed to create deployment: deployments.apps \"web\" already exists\n",
        ),
        (
            "auth can-i delete pods --as=system:serviceaccount:default:robot",
            "no\n",
        ),
    ] {
        let got = kubectl.run(command, "").await;
        assert_eq!(got, (false, expected.to_owned()), "kubectl {command}");
    }
    for (command, expected) in [
        (
            "get deploy web -o jsonpath={.spec.replicas},{.spec.strategy.rollingUpdate.maxSurge}",
            "2,25%",
        ),
        (
            "get deploy web -o jsonpath={.spec.template.spec.containers[0].ports[0]}",
            r#"{"containerPort":80,"protocol":"TCP"}"#,
        ),
        ("get secret pass -o jsonpath={.data.a},{.type}", "MQ==,Opaque"),
        (
            "get svc front -o jsonpath={.spec.ports[0].port},{.spec.ports[0].targetPort}",
            "80,8080",
        ),
        (
            "get cj often -o jsonpath={.spec.schedule},{.spec.suspend}",
            "@hourly,false",
        ),
        ("get quota few -o jsonpath={.spec.hard}", r#"{"cpu":"1","pods":"2"}"#),
        ("get pdb keep -o jsonpath={.spec.minAvailable}", "50%"),
        (
            "get node box -o jsonpath={.spec.taints[0]}",
            r#"{"effect":"NoSchedule","key":"gpu","value":"yes"}"#,
        ),
        (
            "get cm conf -o jsonpath={.metadata.labels.tier},{.metadata.annotations.note}",
            "x,y",
        ),
    ] {
        let got = kubectl.run(command, "").await;
        assert_eq!(got, (true, expected.to_owned()), "kubectl {command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_asks_who_it_is_what_it_may_and_for_a_token() {
    let rig = Rig::start().await;
    let kubectl = rig.kubectl();
    let me = "ATTRIBUTE   VALUE\nUsername    system:admin\nGroups      [system:masters system:authenticated]\n";
    assert_eq!(kubectl.run("auth whoami", "").await, (true, me.to_owned()));
    let role = "create clusterrolebinding robots --clusterrole=view --serviceaccount=default:default";
    kubectl.says(role, "", &["created"]).await;
    let list = kubectl
        .says("auth can-i --list --as=system:serviceaccount:default:default", "", &[])
        .await;
    let row = |start: &str| {
        let found = list.lines().find(|line| line.starts_with(start));
        let words: Vec<&str> = found.unwrap_or_default().split_whitespace().collect();
        words.join(" ")
    };
    assert_eq!(row("Resources "), "Resources Non-Resource URLs Resource Names Verbs");
    assert_eq!(row("pods "), "pods [] [] [get list watch]", "{list}");
    let (success, token) = kubectl.run("create token default --duration=20m", "").await;
    assert!(success, "{token}");
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = rig.bearer(token.trim()).post(review, &json!({})).await;
    assert_eq!(
        answer.json()["status"]["userInfo"]["username"],
        "system:serviceaccount:default:default"
    );
}
