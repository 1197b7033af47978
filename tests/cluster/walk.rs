//! What a user does, step by step, and what kubectl prints then.

use std::collections::BTreeSet;

use tests::lab::{Kubectl, Lab, image, until};

use crate::rollouts;
use crate::streams::{pod, start};

const WEB: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {greeting: hello, page.txt: "from a file\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: web}
data: {password: czNjcmV0}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: main
        image: IMAGE
        command: ["/bin/sh", "-c", "trap 'exit 0' TERM; echo started $GREETING; while true; do sleep 1; done"]
        env:
        - name: GREETING
          valueFrom: {configMapKeyRef: {name: web, key: greeting}}
        - name: PASSWORD
          valueFrom: {secretKeyRef: {name: web, key: password}}
        resources:
          requests: {cpu: 50m, memory: 16Mi}
          limits: {cpu: 200m, memory: 32Mi}
        volumeMounts:
        - {name: config, mountPath: /config}
        - {name: scratch, mountPath: /scratch}
      volumes:
      - name: config
        configMap: {name: web}
      - name: scratch
        emptyDir: {}
"#;

pub fn the_server_answers_as_kubernetes_does(kubectl: &Kubectl) {
    until("the first namespaces are there", || {
        let namespaces = kubectl.run(&["get", "namespaces", "-o", "name"]);
        ["default", "kube-node-lease", "kube-public", "kube-system"]
            .iter()
            .all(|name| namespaces.contains(name))
    });
    assert!(kubectl.run(&["version"]).contains("Server Version: v1.36"));
    assert!(kubectl.run(&["api-resources"]).contains("deployments"));
    assert!(
        kubectl
            .run(&["explain", "pod.spec.restartPolicy"])
            .contains("FIELD: restartPolicy")
    );
    let service = kubectl.run(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]);
    assert_eq!(service, "10.43.0.1");
}

/// `nodes`: their names and addresses.
pub fn all_nodes_become_ready(kubectl: &Kubectl, nodes: &[(&str, String)]) {
    until("all nodes are ready", || {
        let printed = kubectl.run(&["get", "nodes", "--no-headers"]);
        let ready = printed
            .lines()
            .filter(|line| line.split_whitespace().nth(1) == Some("Ready"));
        // The role is written by the server, beside the node's own first words.
        ready.count() == nodes.len() && printed.contains("control-plane")
    });
    let wide = kubectl.run(&["get", "nodes", "-o", "wide"]);
    let header: Vec<&str> = wide
        .lines()
        .next()
        .unwrap()
        .split("  ")
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    assert_eq!(
        header,
        [
            "NAME",
            "STATUS",
            "ROLES",
            "AGE",
            "VERSION",
            "INTERNAL-IP",
            "EXTERNAL-IP",
            "OS-IMAGE",
            "KERNEL-VERSION",
            "CONTAINER-RUNTIME"
        ]
    );
    for (name, address) in nodes {
        let row = wide.lines().find(|line| line.split_whitespace().next() == Some(name));
        let row: Vec<&str> = row.unwrap().split_whitespace().collect();
        let role = if *name == "server" { "control-plane" } else { "<none>" };
        assert_eq!((row[2], row[5], row[6]), (role, &**address, "<none>"), "{wide}");
        assert!(row[4].starts_with("v1.36.") && row[4].contains("+k3s"), "{wide}");
        a_node_is_described(&kubectl.run(&["describe", "node", name]), name, address);
    }
    let ranges = kubectl.run(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    assert_eq!(
        ranges.split_whitespace().collect::<BTreeSet<_>>().len(),
        nodes.len(),
        "{ranges}"
    );
}

/// The sections that people look at, in kubectl's order.
fn a_node_is_described(described: &str, name: &str, address: &str) {
    let lease = format!("\nLease:\n  HolderIdentity:  {name}\n");
    let addresses = format!("\nAddresses:\n  InternalIP:  {address}\n  Hostname:    {name}\n");
    let mut rest = described;
    for section in [
        "Name: ",
        "\nRoles: ",
        "\nLabels: ",
        "\nTaints:             <none>\nUnschedulable:      false\n",
        &lease,
        "\nConditions:\n",
        "\n  Ready            True    ",
        &addresses,
        "\nCapacity:\n",
        "\n  memory: ",
        "\nAllocatable:\n",
        "\nSystem Info:\n",
        "\n  Kubelet Version:            v1.36.",
        "\nPodCIDR: ",
        "\nNon-terminated Pods:          (0 in total)\n",
        "\nAllocated resources:\n",
        "\nEvents:",
    ] {
        // A line break may end one section and begin the next.
        let Some(at) = rest.find(section) else {
            panic!("{section:?} is not there, or not in order:\n{described}")
        };
        rest = &rest[at + section.len() - usize::from(section.ends_with('\n'))..];
    }
}

/// An archive that comes while an agent runs is taken in.
pub fn a_node_has_the_image(kubectl: &Kubectl, name: &str, image: &str) {
    let images = ["get", "node", name, "-o", "jsonpath={.status.images[*].names[*]}"];
    until("the node has the image", || kubectl.run(&images).contains(image));
}

pub fn a_deployment_runs_with_its_config(kubectl: &Kubectl) {
    let printed = kubectl.feed(&["apply", "-f", "-"], &WEB.replace("IMAGE", image::NAME));
    assert_eq!(
        printed,
        "configmap/web created\nsecret/web created\ndeployment.apps/web created\n"
    );
    let printed = kubectl.run(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    assert!(
        printed.ends_with("deployment \"web\" successfully rolled out\n"),
        "{printed}"
    );
    rollouts::a_deployment_is_described(kubectl, "web", DESCRIBED);
    let again = kubectl.feed(&["apply", "-f", "-"], &WEB.replace("IMAGE", image::NAME));
    assert_eq!(
        again,
        "configmap/web unchanged\nsecret/web unchanged\ndeployment.apps/web unchanged\n"
    );
    let pods = kubectl.run(&["get", "pods", "-l", "app=web", "--no-headers", "-o", "wide"]);
    assert_eq!(pods.lines().count(), 3);
    let column = |number: usize| -> BTreeSet<&str> {
        pods.lines()
            .filter_map(|line| line.split_whitespace().nth(number))
            .collect()
    };
    assert_eq!((column(1), column(2)), (["1/1"].into(), ["Running"].into()), "{pods}");
    assert_eq!(column(5).len(), 3, "an address each: {pods}");
    assert_eq!(column(6).len(), 3, "a node each: {pods}");
    let script = "echo $GREETING $PASSWORD; cat /config/page.txt; stat -c %a /scratch; stat -Lc %s /var/run/secrets/kubernetes.io/serviceaccount/token";
    let printed = kubectl.run(&["exec", "deploy/web", "--", "sh", "-c", script]);
    assert!(printed.starts_with("hello s3cret\nfrom a file\n777\n"), "{printed}");
    assert!(
        printed.lines().nth(3).unwrap().parse::<u32>().unwrap() > 500,
        "a token: {printed}"
    );
    let described = kubectl.run(&["describe", "pods", "-l", "app=web"]);
    for part in [
        "Successfully assigned default/web-",
        "Container created",
        "Container started",
        "Limits:",
        "QoS Class:",
    ] {
        assert!(described.contains(part), "{part} is missing:\n{described}");
    }
}

/// What `kubectl describe` says of it, as Kubernetes has it.
const DESCRIBED: &str = r#"
Name:                   web
Namespace:              default
CreationTimestamp: TIME
Labels:                 <none>
Annotations:            deployment.kubernetes.io/revision: 1
Selector:               app=web
Replicas:               3 desired | 3 updated | 3 total | 3 available | 0 unavailable
StrategyType:           RollingUpdate
MinReadySeconds:        0
RollingUpdateStrategy:  25% max unavailable, 25% max surge
Pod Template:
  Labels:  app=web
  Containers:
   main:
    Image:      registry.test/busybox:1
    Port:       <none>
    Host Port:  <none>
    Command:
      /bin/sh
      -c
      trap 'exit 0' TERM; echo started $GREETING; while true; do sleep 1; done
    Limits:
      cpu:     200m
      memory:  32Mi
    Requests:
      cpu:     50m
      memory:  16Mi
    Environment:
      GREETING:  <set to the key 'greeting' of config map 'web'>  Optional: false
      PASSWORD:  <set to the key 'password' in secret 'web'>      Optional: false
    Mounts:
      /config from config (rw)
      /scratch from scratch (rw)
  Volumes:
   config:
    Type:      ConfigMap (a volume populated by a ConfigMap)
    Name:      web
    Optional:  false
   scratch:
    Type:          EmptyDir (a temporary directory that shares a pod's lifetime)
    Medium:
    SizeLimit:     <unset>
  Node-Selectors:  <none>
  Tolerations:     <none>
Conditions:
  Type           Status  Reason
  ----           ------  ------
  Available      True    MinimumReplicasAvailable
  Progressing    True    NewReplicaSetAvailable
OldReplicaSets:  <none>
NewReplicaSet:   SET (3/3 replicas created)
Events:
  Type  Reason  Age  From  Message
  ----  ------  ----  ----  -------
  Normal  ScalingReplicaSet  AGE  deployment-controller Scaled up replica set SET from 0 to 3
"#;

pub fn it_scales_rolls_and_goes(kubectl: &Kubectl) {
    assert_eq!(
        kubectl.run(&["scale", "deployment/web", "--replicas=5"]),
        "deployment.apps/web scaled\n"
    );
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    assert_eq!(
        kubectl
            .run(&["get", "deployment", "web", "--no-headers"])
            .split_whitespace()
            .nth(1),
        Some("5/5")
    );
    let old: BTreeSet<String> = names(kubectl).into_iter().collect();
    let image = format!("main={}", image::OTHER);
    assert_eq!(
        kubectl.run(&["set", "image", "deployment/web", &image]),
        "deployment.apps/web image updated\n"
    );
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    until("the old pods are gone", || {
        names(kubectl).iter().all(|name| !old.contains(name))
    });
    let sets = kubectl.run(&["get", "replicasets", "--no-headers"]);
    assert_eq!(sets.lines().count(), 2, "{sets}");
    assert_eq!(
        kubectl.run(&["delete", "deployment", "web"]),
        "deployment.apps \"web\" deleted\n"
    );
    until("its pods are gone", || names(kubectl).is_empty());
}

pub fn bad_input_is_told_as_kubernetes_tells_it(kubectl: &Kubectl) {
    let pod = |fields: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: bad}}\nspec: {{{fields}}}\n");
    for (input, wanted) in [
        (
            pod("containers: [{name: c, image: x, imagee: y}]"),
            "unknown field \"spec.containers[0].imagee\"",
        ),
        (
            pod("containers: [{name: c, image: x, tty: maybe}]"),
            "spec.containers[0].tty",
        ),
        (pod("containers: []"), "spec.containers"),
        (pod("containers: [{name: C_, image: x}]"), "spec.containers[0].name"),
        ("kind: Pod\n".to_owned(), "apiVersion not set"),
        ("kind: [Pod\n".to_owned(), "error converting YAML to JSON"),
        ("{\"kind\": \"Pod\",}}".to_owned(), "error parsing"),
    ] {
        let said = kubectl.fail(&["apply", "-f", "-"], &input);
        assert!(said.contains(wanted), "{input}\n{said}");
    }
    // kubectl reads what it is given; only like this a broken document comes to the server.
    let pods = "--raw=/api/v1/namespaces/default/pods";
    for broken in ["{\"kind\": \"Pod\", ", "kind: [Pod", ""] {
        let said = kubectl.fail(&["create", pods, "-f", "-"], broken);
        assert!(
            said.starts_with("Error from server (BadRequest): "),
            "{broken:?}: {said}"
        );
    }
    let missing = kubectl.fail(&["get", "pod", "nobody"], "");
    assert_eq!(missing, "Error from server (NotFound): pods \"nobody\" not found\n");
}

pub fn an_agent_that_is_killed_adopts_its_pods(kubectl: &Kubectl, lab: &mut Lab) {
    start(kubectl, &pod("stays", "one", "exec sleep 10000"));
    let before = identity(kubectl, "stays");
    lab.end("one", true);
    lab.restart_agent("one");
    // That another pod starts shows that the new agent is at work.
    start(kubectl, &pod("later", "one", "exec sleep 10000"));
    assert_eq!(identity(kubectl, "stays"), before);
    kubectl.run(&["delete", "pod", "stays", "later"]);
}

/// Which container runs, how often it was restarted, and at which address.
pub fn identity(kubectl: &Kubectl, pod: &str) -> String {
    let status =
        "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.status.podIP}";
    kubectl.run(&["get", "pod", pod, "-o", &format!("jsonpath={status}")])
}

fn names(kubectl: &Kubectl) -> Vec<String> {
    let printed = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "name"]);
    printed
        .lines()
        .filter_map(|line| line.strip_prefix("pod/"))
        .map(ToOwned::to_owned)
        .collect()
}
