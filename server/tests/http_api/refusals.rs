//! Bad input gets the exact answer that clients act on.

use serde_json::{Value, json};

use crate::rig::Rig;

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_with_code_reason_and_message() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    assert_eq!(admin.post(MAPS, &map("taken")).await.code, 201);
    let taken = map("taken").to_string();
    let stale = json!({"metadata": {"name": "taken", "resourceVersion": "1"}}).to_string();
    let other = json!({"metadata": {"name": "other"}}).to_string();
    let elsewhere = json!({"metadata": {"name": "new", "namespace": "kube-system"}}).to_string();
    let one = format!("{MAPS}/taken");
    let formats = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    let unreadable =
        format!("the body of the request was in an unknown format - accepted media types include: {formats}");
    let patches = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
    let unpatchable =
        format!("the body of the request was in an unknown format - accepted media types include: {patches}");
    let unacceptable = format!("only the following media types are accepted: {formats}");
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let nowhere = "the server could not find the requested resource";
    for (method, path, headers, body, code, reason, message) in [
        (
            "POST",
            MAPS,
            JSON,
            "{\"a\":",
            400,
            "BadRequest",
            "couldn't parse JSON: EOF while parsing a value at line 1 column 5",
        ),
        (
            "POST",
            MAPS,
            JSON,
            "",
            400,
            "BadRequest",
            "couldn't parse JSON: EOF while parsing a value at line 1 column 0",
        ),
        (
            "POST",
            MAPS,
            JSON,
            "[]",
            400,
            "BadRequest",
            "the body of the request is not an object",
        ),
        (
            "POST",
            MAPS,
            &[("content-type", "text/plain")],
            "{}",
            415,
            "UnsupportedMediaType",
            &unreadable,
        ),
        (
            "POST",
            MAPS,
            JSON,
            &taken,
            409,
            "AlreadyExists",
            "configmaps \"taken\" already exists",
        ),
        (
            "PUT",
            &one,
            JSON,
            &stale,
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"taken\": the object has been modified; please apply your changes to the latest version and try again",
        ),
        (
            "PUT",
            &one,
            JSON,
            &other,
            400,
            "BadRequest",
            "the name of the object (other) does not match the name on the URL (taken)",
        ),
        (
            "POST",
            MAPS,
            JSON,
            &elsewhere,
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        ("PATCH", &one, JSON, "{}", 415, "UnsupportedMediaType", &unpatchable),
        (
            "PATCH",
            &one,
            &[("content-type", "application/merge-patch+json")],
            "[",
            400,
            "BadRequest",
            "couldn't parse JSON: EOF while parsing a list at line 1 column 1",
        ),
        (
            "PUT",
            MAPS,
            JSON,
            "{}",
            405,
            "MethodNotAllowed",
            "update is not supported on resources of kind \"configmaps\"",
        ),
        (
            "POST",
            &one,
            JSON,
            "{}",
            405,
            "MethodNotAllowed",
            "create is not supported on resources of kind \"configmaps\"",
        ),
        (
            "DELETE",
            "/api/v1/configmaps",
            JSON,
            "",
            405,
            "MethodNotAllowed",
            "deletecollection is not supported on resources of kind \"configmaps\"",
        ),
        (
            "DELETE",
            "/api/v1/namespaces",
            JSON,
            "",
            405,
            "MethodNotAllowed",
            "deletecollection is not supported on resources of kind \"namespaces\"",
        ),
        (
            "GET",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            &[],
            "",
            405,
            "MethodNotAllowed",
            "list is not supported on resources of kind \"subjectaccessreviews.authorization.k8s.io\"",
        ),
        (
            "POST",
            "/version",
            &[],
            "",
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ),
        ("GET", "/api/v1/widgets", &[], "", 404, "NotFound", nowhere),
        ("GET", "/apis/nope.example.com/v1", &[], "", 404, "NotFound", nowhere),
        ("GET", "/openapi/v1", &[], "", 404, "NotFound", nowhere),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps/%zz",
            &[],
            "",
            404,
            "NotFound",
            nowhere,
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps/nope",
            &[],
            "",
            404,
            "NotFound",
            "configmaps \"nope\" not found",
        ),
        (
            "GET",
            "/apis/apps/v1/namespaces/default/deployments/nope",
            &[],
            "",
            404,
            "NotFound",
            "deployments.apps \"nope\" not found",
        ),
        (
            "GET",
            "/api/v1/namespaces/default/pods/nope/log",
            &[],
            "",
            404,
            "NotFound",
            "pods \"nope\" not found",
        ),
        (
            "GET",
            MAPS,
            &[("accept", "text/plain")],
            "",
            406,
            "NotAcceptable",
            &unacceptable,
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &[("accept", table)],
            "{}",
            406,
            "NotAcceptable",
            &unacceptable,
        ),
        (
            "GET",
            "/api/v1/configmaps?labelSelector=a%20b",
            &[],
            "",
            400,
            "BadRequest",
            "",
        ),
        (
            "GET",
            "/api/v1/configmaps?fieldSelector=spec.x%3Dy",
            &[],
            "",
            400,
            "BadRequest",
            "field label not supported: spec.x",
        ),
        (
            "GET",
            "/api/v1/configmaps?limit=many",
            &[],
            "",
            400,
            "BadRequest",
            "invalid value for limit: strconv.ParseInt: parsing \"many\": invalid syntax",
        ),
        (
            "GET",
            "/api/v1/configmaps?watch=maybe",
            &[],
            "",
            400,
            "BadRequest",
            "invalid value for watch: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        ),
        ("GET", "/api/v1/configmaps?continue=x", &[], "", 400, "BadRequest", ""),
        (
            "GET",
            "/api/v1/configmaps?timeout=soon",
            &[],
            "",
            400,
            "BadRequest",
            "invalid value for timeout: time: invalid duration \"soon\"",
        ),
        (
            "GET",
            "/api/v1/configmaps?resourceVersion=1&resourceVersionMatch=Exact",
            &[],
            "",
            410,
            "Expired",
            "The resourceVersion for the provided list is too old.",
        ),
        (
            "GET",
            "/api/v1/configmaps?watch=1&sendInitialEvents=true",
            &[],
            "",
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?dryRun=Some",
            JSON,
            &taken,
            422,
            "Invalid",
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"",
        ),
        (
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            JSON,
            "{}",
            422,
            "Invalid",
            "TokenReview.authentication.k8s.io \"\" is invalid: spec.token: Required value: token is required for TokenReview in authentication",
        ),
        (
            "GET",
            "/api/v1/configmaps?resourceVersion=999999999&timeout=200ms",
            &[],
            "",
            504,
            "Timeout",
            "Timeout: request did not complete within requested timeout",
        ),
        (
            "GET",
            "/api/v1/configmaps?resourceVersion=999999999",
            &[],
            "",
            504,
            "Timeout",
            "",
        ),
    ] {
        let answer = admin.call(method, path, headers, body.to_owned()).await;
        let (got_code, got_reason, got_message) = answer.refusal();
        assert_eq!(
            (got_code, got_reason.as_str()),
            (code, reason),
            "{method} {path}: {got_message}"
        );
        assert!(
            message.is_empty() || got_message == message,
            "{method} {path}: {got_message}"
        );
        assert_eq!(answer.header("content-type"), "application/json", "{method} {path}");
        assert!(!answer.header("audit-id").is_empty(), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_its_object() {
    let rig = Rig::start().await;
    let status = rig
        .administrator()
        .get("/apis/apps/v1/namespaces/default/deployments/nope")
        .await
        .json();
    assert_eq!(
        status,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "deployments.apps \"nope\" not found", "reason": "NotFound",
            "details": {"name": "nope", "group": "apps", "kind": "deployments"}, "code": 404,
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_three_mebibytes_is_refused_and_one_under_it_is_read() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    let padded = |size: usize| format!("{{\"metadata\":{{\"name\":\"x\"}},\"pad\":\"{}\"}}", "x".repeat(size));
    let large = admin.call("POST", MAPS, JSON, padded(3 << 20)).await;
    assert_eq!(
        large.refusal(),
        (
            413,
            "RequestEntityTooLarge".to_owned(),
            "Request entity too large: limit is 3145728".to_owned()
        )
    );
    let fits = admin
        .call("POST", &format!("{MAPS}?fieldValidation=Ignore"), JSON, padded(1 << 20))
        .await;
    assert_eq!(fits.code, 201, "{}", fits.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_write_names_every_unknown_and_duplicate_field() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    let body = r#"{"metadata":{"name":"odd"},"data":{"a":"1","a":"2"},"shape":"round"}"#;
    let strict = admin
        .call("POST", &format!("{MAPS}?fieldValidation=Strict"), JSON, body)
        .await;
    let (code, reason, message) = strict.refusal();
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
    assert!(
        message.ends_with("strict decoding error: unknown field \"shape\", duplicate field \"data.a\""),
        "{message}"
    );
    let warned = admin.call("POST", MAPS, JSON, body).await;
    assert_eq!(warned.code, 201, "{}", warned.text());
    let warnings: Vec<_> = warned
        .headers
        .get_all("warning")
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    assert_eq!(
        warnings,
        [
            r#"299 - "unknown field \"shape\"""#,
            r#"299 - "duplicate field \"data.a\"""#
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_of_an_answer_follows_accept() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    admin.post(MAPS, &map("shown")).await;
    let path = format!("{MAPS}/shown");
    let yaml = admin.call("GET", &path, &[("accept", "application/yaml")], "").await;
    assert_eq!(yaml.header("content-type"), "application/yaml");
    assert!(yaml.text().contains("name: shown"), "{}", yaml.text());
    let table = admin
        .call(
            "GET",
            MAPS,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
            "",
        )
        .await
        .json();
    assert_eq!(
        (&table["kind"], &table["columnDefinitions"][0]["name"]),
        (&json!("Table"), &json!("Name"))
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let partial = admin.call("GET", MAPS, &[("accept", partial)], "").await.json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["metadata"]["name"], "shown");
    assert_eq!(partial["items"][0].get("data"), None);
    let head = admin.call("HEAD", &path, &[], "").await;
    assert_eq!((head.code, head.body.len()), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_their_bound_are_refused() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    let long = "x".repeat(100 * 1024);
    assert_eq!(admin.call("GET", MAPS, &[("x-long", &long)], "").await.code, 431);
    let many: Vec<(String, String)> = (0..200).map(|number| (format!("x-{number}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(admin.call("GET", MAPS, &many, "").await.code, 431);
}
