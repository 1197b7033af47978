//! The kubectl that people use, against the API.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::rig::Rig;

pub struct Kubectl {
    config: std::path::PathBuf,
    home: std::path::PathBuf,
}

impl Rig {
    pub fn kubectl(&self) -> Kubectl {
        let (chain, key) = self.admin();
        let data = |text: &str| STANDARD.encode(text);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: x, cluster: {{server: 'https://{}', certificate-authority-data: {}}}}}]\n\
             users: [{{name: x, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n",
            self.address,
            data(self.pki.server_ca_pem()),
            data(&chain),
            data(&key),
        );
        let config = self.dir.join("kubeconfig");
        std::fs::write(&config, text).unwrap();
        Kubectl {
            config,
            home: self.dir.clone(),
        }
    }
}

impl Kubectl {
    /// Runs it; whether it succeeded, and what it printed on either stream.
    pub async fn run(&self, arguments: &str, input: &str) -> (bool, String) {
        let (config, home) = (self.config.clone(), self.home.clone());
        let arguments: Vec<String> = arguments.split_whitespace().map(ToOwned::to_owned).collect();
        let file = self.home.join("input.yaml");
        std::fs::write(&file, input).unwrap();
        let run = move || {
            let mut command = Command::new("kubectl");
            command.env("KUBECONFIG", config).env("HOME", home).args(arguments);
            command.stdin(std::fs::File::open(file).unwrap());
            command.output().unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Runs it, and insists that it succeeds and prints all of `words`.
    pub async fn says(&self, arguments: &str, input: &str, words: &[&str]) -> String {
        let (success, text) = self.run(arguments, input).await;
        assert!(success, "kubectl {arguments}: {text}");
        for word in words {
            assert!(text.contains(word), "kubectl {arguments}: no {word:?} in: {text}");
        }
        text
    }
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: 'example.org/web:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
";

const LAB: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: lab}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf, namespace: lab}
data: {a: '1'}
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_creates_shows_changes_and_deletes() {
    let rig = Rig::start().await;
    let kubectl = rig.kubectl();
    kubectl.says("version", "", &["Server Version: v1.36"]).await;
    kubectl
        .says("create -f -", LAB, &["namespace/lab created", "configmap/conf created"])
        .await;
    let (success, text) = kubectl.run("create -f -", LAB).await;
    assert!(!success && text.contains("AlreadyExists"), "{text}");
    kubectl
        .says("get configmaps -n lab", "", &["NAME", "DATA", "AGE", "conf"])
        .await;
    kubectl
        .says("get configmap conf -n lab -o jsonpath={.data.a}", "", &["1"])
        .await;
    kubectl
        .says("label configmap conf tier=x -n lab", "", &["configmap/conf labeled"])
        .await;
    kubectl
        .says(
            "annotate configmap conf note=y -n lab",
            "",
            &["configmap/conf annotated"],
        )
        .await;
    kubectl
        .says("get cm -n lab -l tier=x --show-labels", "", &["tier=x"])
        .await;
    kubectl
        .says("get cm -n lab -l tier=other", "", &["No resources found"])
        .await;
    kubectl
        .says(
            "describe configmap conf -n lab",
            "",
            &["Name:", "conf", "tier=x", "note: y"],
        )
        .await;
    let patch = r#"patch configmap conf -n lab --type=merge -p {"data":{"a":"2"}}"#;
    kubectl.says(patch, "", &["configmap/conf patched"]).await;
    let patch = r#"patch configmap conf -n lab --type=json -p [{"op":"add","path":"/data/b","value":"3"}]"#;
    kubectl.says(patch, "", &["configmap/conf patched"]).await;
    kubectl
        .says("get cm conf -n lab -o yaml", "", &["a: \"2\"", "b: \"3\""])
        .await;
    kubectl.says("get all,cm,secrets -A", "", &["conf"]).await;
    kubectl
        .says("delete configmap conf -n lab", "", &["configmap \"conf\" deleted"])
        .await;
    let (success, text) = kubectl.run("get configmap conf -n lab", "").await;
    assert!(
        !success && text.contains("(NotFound): configmaps \"conf\" not found"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_applies_twice_and_scales() {
    let rig = Rig::start().await;
    let kubectl = rig.kubectl();
    kubectl
        .says(
            "apply -f -",
            DEPLOYMENT,
            &["deployment.apps/web created", "service/web created"],
        )
        .await;
    kubectl
        .says(
            "apply -f -",
            DEPLOYMENT,
            &["deployment.apps/web unchanged", "service/web unchanged"],
        )
        .await;
    let changed = DEPLOYMENT.replace("web:1", "web:2");
    kubectl
        .says(
            "apply -f -",
            &changed,
            &["deployment.apps/web configured", "service/web unchanged"],
        )
        .await;
    kubectl
        .says("get deployments", "", &["READY", "UP-TO-DATE", "AVAILABLE", "0/2"])
        .await;
    kubectl
        .says("get deploy web -o wide", "", &["example.org/web:2", "app=web"])
        .await;
    kubectl
        .says("scale deployment web --replicas=5", "", &["deployment.apps/web scaled"])
        .await;
    kubectl
        .says("get deploy web -o jsonpath={.spec.replicas}", "", &["5"])
        .await;
    kubectl
        .says(
            "describe deployment web",
            "",
            &["Replicas:", "5 desired", "example.org/web:2"],
        )
        .await;
    kubectl
        .says(
            "set image deployment/web main=example.org/web:3",
            "",
            &["image updated"],
        )
        .await;
    kubectl
        .says(
            "diff -f -",
            &DEPLOYMENT
                .replace("web:1", "web:3")
                .replace("replicas: 2", "replicas: 5"),
            &[],
        )
        .await;
    let (success, text) = kubectl
        .run("apply -f -", &DEPLOYMENT.replace("replicas: 2", "replica: 2"))
        .await;
    assert!(!success && text.contains("unknown field \"spec.replica\""), "{text}");
    kubectl
        .says(
            "delete -f -",
            DEPLOYMENT,
            &["deployment.apps \"web\" deleted", "service \"web\" deleted"],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_finds_out_what_there_is() {
    let rig = Rig::start().await;
    let kubectl = rig.kubectl();
    kubectl
        .says(
            "api-resources",
            "",
            &["deployments", "deploy", "apps/v1", "Deployment", "configmaps", "cm"],
        )
        .await;
    kubectl
        .says("api-versions", "", &["apps/v1", "v1", "rbac.authorization.k8s.io/v1"])
        .await;
    kubectl
        .says(
            "explain pod.spec.containers",
            "",
            &["KIND:", "Pod", "image", "<string>", "FIELDS"],
        )
        .await;
    // The one command that still reads OpenAPI v2, in the protobuf form.
    let old = "explain pod.spec.volumes.emptyDir --output=plaintext-openapiv2";
    let text = kubectl
        .says(
            old,
            "",
            &["KIND:     Pod\nVERSION:  v1\n", "RESOURCE: emptyDir <Object>"],
        )
        .await;
    let fields = text.split("FIELDS:\n").nth(1).unwrap_or_default();
    let names: Vec<&str> = fields
        .lines()
        .filter(|line| line.starts_with("   ") && !line.starts_with("    "))
        .collect();
    assert_eq!(names, ["   medium\t<string>", "   sizeLimit\t<string>"], "{text}");
    kubectl
        .says("get --raw /readyz?verbose", "", &["[+]ping ok", "readyz check passed"])
        .await;
    kubectl.says("cluster-info", "", &["is running at"]).await;
}
