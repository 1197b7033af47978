//! Who gets in, and who may do what.

use serde_json::json;
use server::join::pki::Own;

use crate::rig::Rig;

const PODS: &str = "/api/v1/namespaces/default/pods";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_wrong_are_no_credentials() {
    let rig = Rig::start().await;
    for (user, what) in [
        (rig.user(None), "nobody"),
        (rig.bearer("nonsense"), "no token"),
        (rig.bearer("abcdef.0123456789abcdef"), "an unknown bootstrap token"),
        (rig.bearer("eyJhbGciOiJub25lIn0.e30."), "an unsigned token"),
    ] {
        let refusal = user.get(PODS).await.refusal();
        assert_eq!(
            refusal,
            (401, "Unauthorized".to_owned(), "Unauthorized".to_owned()),
            "{what}"
        );
    }
    let mut basic = rig.user(None);
    basic
        .headers
        .push(("authorization".to_owned(), "Basic bm9kZTp3cm9uZw==".to_owned()));
    assert_eq!(basic.get(PODS).await.code, 401);
    for path in ["/readyz", "/livez", "/healthz", "/version"] {
        assert_eq!(rig.user(None).get(path).await.code, 200, "{path} is for everyone");
    }
    rig.ready.send_replace(false);
    let down = rig.user(None).get("/readyz").await;
    assert_eq!(down.code, 500);
    assert!(
        down.text().contains("[-]started failed: reason withheld"),
        "{}",
        down.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_names_nobody_is_refused_and_stands_in_no_tokens_way() {
    let (rig, elsewhere) = (Rig::start().await, Rig::start().await);
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = rig.administrator().post(path, &json!({"spec": {}})).await.json();
    let token = made["status"]["token"].as_str().unwrap().to_owned();
    let serving = rig.pki.own(Own::Serving).unwrap();
    for (certificate, what) in [
        (elsewhere.admin(), "of another cluster"),
        (rig.ended("system:admin", "system:masters"), "expired"),
        (
            (serving.chain.clone(), serving.key.pem().to_owned()),
            "a serving certificate",
        ),
    ] {
        for second_version in [false, true] {
            let mut user = rig.user(Some(certificate.clone()));
            user.second_version = second_version;
            for path in [PODS, "/healthz"] {
                let refusal = user.get(path).await.refusal();
                let expected = (401, "Unauthorized".to_owned(), "Unauthorized".to_owned());
                assert_eq!(refusal, expected, "{what}: {path}");
            }
            user.headers
                .push(("authorization".to_owned(), format!("Bearer {token}")));
            let refusal = user.get(PODS).await.refusal();
            assert_eq!(refusal.0, 403, "{what}: the token says who it is: {refusal:?}");
            assert!(
                refusal.2.contains("system:serviceaccount:default:default"),
                "{refusal:?}"
            );
            user.headers.pop();
            user.headers
                .push(("authorization".to_owned(), "Bearer nonsense".to_owned()));
            assert_eq!(user.get(PODS).await.code, 401, "{what}");
        }
    }
    // A good certificate goes before a token, good or not.
    let mut admin = rig.administrator();
    admin
        .headers
        .push(("authorization".to_owned(), "Bearer nonsense".to_owned()));
    assert_eq!(admin.get(PODS).await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_may_what_a_binding_says_from_the_moment_it_is_there() {
    let rig = Rig::start().await;
    let (admin, jane) = (rig.administrator(), rig.named("jane", &["devs"]));
    assert_eq!(
        jane.get(&format!("{PODS}/web")).await.refusal(),
        (
            403,
            "Forbidden".to_owned(),
            "pods \"web\" is forbidden: User \"jane\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\""
                .to_owned()
        )
    );
    assert_eq!(
        jane.get("/metrics").await.refusal().2,
        "forbidden: User \"jane\" cannot get path \"/metrics\""
    );
    let binding = json!({
        "metadata": {"name": "devs-view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "devs"}],
    });
    let created = admin
        .post(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            &binding,
        )
        .await;
    assert_eq!(created.code, 201, "{}", created.text());
    assert_eq!(jane.get(PODS).await.code, 200);
    assert_eq!(jane.get(SECRETS).await.code, 403);
    assert_eq!(jane.get("/api/v1/pods").await.code, 403, "only in that namespace");
    let review = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}});
    let review = jane
        .post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review)
        .await;
    assert_eq!((review.code, &review.json()["status"]["allowed"]), (201, &json!(true)));
    let review = json!({"spec": {"user": "jane", "groups": ["devs"], "resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": "default"}}});
    let review = admin
        .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)
        .await;
    assert_eq!(review.json()["status"]["allowed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_what_he_does_not_hold() {
    let rig = Rig::start().await;
    let (admin, jane) = (rig.administrator(), rig.named("jane", &[]));
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let binding = |name: &str, role: &str, user: &str| {
        json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
        })
    };
    assert_eq!(
        admin.post(bindings, &binding("jane-admin", "admin", "jane")).await.code,
        201
    );
    let rule = |verb: &str, resource: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": [resource]});
    let role = |name: &str, rule| json!({"metadata": {"name": name}, "rules": [rule]});
    assert_eq!(jane.post(roles, &role("fine", rule("get", "pods"))).await.code, 201);
    assert_eq!(
        jane.post(roles, &role("more", rule("get", "nodes"))).await.refusal().2,
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"
    );
    assert_eq!(
        jane.post(bindings, &binding("up", "cluster-admin", "jane")).await.code,
        403
    );
    assert_eq!(jane.post(bindings, &binding("lost", "nothing", "jane")).await.code, 404);
    assert_eq!(jane.post(bindings, &binding("bob", "edit", "bob")).await.code, 201);
    let merge = [("content-type", "application/merge-patch+json")];
    let fine = format!("{roles}/fine");
    let more = json!({"rules": [rule("get", "nodes")]}).to_string();
    assert_eq!(jane.call("PATCH", &fine, &merge, more).await.code, 403);
    let less = json!({"metadata": {"labels": {"a": "b"}}, "rules": [rule("list", "pods")]}).to_string();
    let patched = jane.call("PATCH", &fine, &merge, less).await;
    assert_eq!(
        (patched.code, &patched.json()["metadata"]["labels"]["a"]),
        (200, &json!("b"))
    );
    let changed = role("fine", rule("*", "*")).to_string();
    let json = [("content-type", "application/json")];
    assert_eq!(jane.call("PUT", &fine, &json, changed).await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_needs_permission_and_then_is_complete() {
    let rig = Rig::start().await;
    let me = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let mut jane = rig.named("jane", &[]);
    jane.headers.push(("impersonate-user".to_owned(), "admin".to_owned()));
    assert_eq!(
        jane.post(me, &json!({})).await.refusal().2,
        "users \"admin\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    let mut admin = rig.administrator();
    admin.headers.push(("impersonate-user".to_owned(), "bob".to_owned()));
    admin.headers.push(("impersonate-group".to_owned(), "devs".to_owned()));
    admin
        .headers
        .push(("impersonate-extra-scopes%2Fx".to_owned(), "view".to_owned()));
    let info = admin.post(me, &json!({})).await.json()["status"]["userInfo"].clone();
    assert_eq!(
        info,
        json!({"username": "bob", "groups": ["devs", "system:authenticated"], "extra": {"scopes/x": ["view"]}})
    );
    assert_eq!(admin.get(PODS).await.code, 403, "bob is no administrator");
    let mut odd = rig.administrator();
    odd.headers.push(("impersonate-group".to_owned(), "devs".to_owned()));
    assert_eq!(odd.get(PODS).await.code, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_token_works_while_its_account_lives() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(
        admin.post(accounts, &json!({"metadata": {"name": "robot"}})).await.code,
        201
    );
    let short = json!({"spec": {"expirationSeconds": 60}});
    assert_eq!(admin.post(&format!("{accounts}/robot/token"), &short).await.code, 422);
    assert_eq!(
        admin.post(&format!("{accounts}/nobody/token"), &json!({})).await.code,
        404
    );
    let issued = admin
        .post(
            &format!("{accounts}/robot/token"),
            &json!({"spec": {"expirationSeconds": 900}}),
        )
        .await;
    assert_eq!(issued.code, 201, "{}", issued.text());
    let token = issued.json()["status"]["token"].as_str().unwrap().to_owned();
    let robot = rig.bearer(&token);
    let me = robot
        .post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({}))
        .await
        .json();
    assert_eq!(
        me["status"]["userInfo"]["username"],
        "system:serviceaccount:default:robot"
    );
    assert_eq!(
        me["status"]["userInfo"]["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = admin.post(reviews, &json!({"spec": {"token": token}})).await.json();
    assert_eq!(review["status"]["authenticated"], true);
    let foreign = json!({"spec": {"token": token, "audiences": ["elsewhere"]}});
    assert_eq!(
        admin.post(reviews, &foreign).await.json()["status"].get("authenticated"),
        None
    );
    assert_eq!(robot.get("/openid/v1/jwks").await.json()["keys"][0]["kty"], "EC");
    assert_eq!(
        admin.call("DELETE", &format!("{accounts}/robot"), &[], "").await.code,
        200
    );
    assert_eq!(robot.get("/api").await.code, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_the_secrets_of_its_pods_and_no_others() {
    let rig = Rig::start().await;
    let (admin, node, other) = (
        rig.administrator(),
        rig.named("system:node:box-1", &["system:nodes"]),
        rig.named("system:node:box-2", &["system:nodes"]),
    );
    for name in ["mine", "theirs"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"k": "v"}});
        assert_eq!(admin.post(SECRETS, &secret).await.code, 201);
    }
    for name in ["box-1", "box-2"] {
        let created = rig.named(&format!("system:node:{name}"), &["system:nodes"]);
        let created = created
            .post("/api/v1/nodes", &json!({"metadata": {"name": name}}))
            .await;
        assert_eq!(created.code, 201, "{}", created.text());
    }
    let pod = json!({
        "metadata": {"name": "web"},
        "spec": {
            "nodeName": "box-1",
            "containers": [{"name": "a", "image": "b", "envFrom": [{"secretRef": {"name": "mine"}}]}],
        },
    });
    let created = admin.post(PODS, &pod).await;
    assert_eq!(created.code, 201, "{}", created.text());
    assert_eq!(node.get(&format!("{SECRETS}/mine")).await.code, 200);
    assert_eq!(
        node.get(&format!("{SECRETS}?fieldSelector=metadata.name%3Dmine"))
            .await
            .code,
        200
    );
    assert_eq!(node.get(&format!("{SECRETS}/theirs")).await.code, 403);
    assert_eq!(node.get(SECRETS).await.code, 403);
    assert_eq!(other.get(&format!("{SECRETS}/mine")).await.code, 403);
    assert_eq!(
        node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dbox-1").await.code,
        200
    );
    assert_eq!(node.get("/api/v1/pods").await.code, 403);
    assert_eq!(
        node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dbox-2").await.code,
        403
    );
    assert_eq!(other.get(&format!("{PODS}/web")).await.code, 403);
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let uid = created.json()["metadata"]["uid"].clone();
    let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": uid}}});
    assert_eq!(node.post(token, &bound).await.code, 201);
    assert_eq!(node.post(token, &json!({})).await.code, 403, "not bound to a pod");
    assert_eq!(other.post(token, &bound).await.code, 403, "a pod of another node");
    let vague = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web"}}});
    assert_eq!(node.post(token, &vague).await.code, 403, "which pod of that name");
    let wrong = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "x"}}});
    assert_eq!(node.post(token, &wrong).await.code, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_a_node_makes_itself_opens_no_secret_to_it() {
    let rig = Rig::start().await;
    let (admin, evil) = (rig.administrator(), rig.named("system:node:evil", &["system:nodes"]));
    let system = "/api/v1/namespaces/kube-system";
    let secret = json!({"metadata": {"name": "prey"}, "stringData": {"k": "v"}});
    let created = admin.post(&format!("{system}/secrets"), &secret).await;
    assert_eq!(created.code, 201, "{}", created.text());
    let node = evil.post("/api/v1/nodes", &json!({"metadata": {"name": "evil"}})).await;
    assert_eq!(node.code, 201, "{}", node.text());
    let uid = node.json()["metadata"]["uid"].clone();
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "evil", "uid": uid, "controller": true});
    let pod = |name: &str, container: serde_json::Value, more: (&str, serde_json::Value)| {
        let mut pod = json!({
            "metadata": {
                "name": name,
                "annotations": {"kubernetes.io/config.mirror": "x"},
                "ownerReferences": [owner],
            },
            "spec": {"nodeName": "evil", "containers": [container]},
        });
        pod["spec"][more.0] = more.1;
        pod
    };
    let plain = json!({"name": "a", "image": "b"});
    let prey = json!({"name": "prey"});
    let nothing = ("hostNetwork", json!(true));
    for (name, container, more) in [
        ("pull", plain.clone(), ("imagePullSecrets", json!([prey]))),
        (
            "environment",
            json!({"name": "a", "image": "b", "envFrom": [{"secretRef": prey}]}),
            nothing.clone(),
        ),
        (
            "projected",
            plain.clone(),
            (
                "volumes",
                json!([{"name": "v", "projected": {"sources": [{"secret": prey}]}}]),
            ),
        ),
    ] {
        let refusal = evil.post(&format!("{system}/pods"), &pod(name, container, more)).await;
        let (code, _, why) = refusal.refusal();
        assert_eq!(code, 403, "{name}: {why}");
        assert!(
            why.contains("can not create pods that reference secrets"),
            "{name}: {why}"
        );
        assert_eq!(evil.get(&format!("{system}/secrets/prey")).await.code, 403, "{name}");
    }
    let kept = evil.post(&format!("{system}/pods"), &pod("fine", plain, nothing)).await;
    assert_eq!(kept.code, 201, "what refers to nothing: {}", kept.text());
}
