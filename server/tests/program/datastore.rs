//! Where a start finds its datastore and its token when the environment names them, and what it tells of a damaged file.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tokio::time::{sleep, timeout};

use crate::rig::{Admin, Folder, Program};

/// Each variable is the cause of a refusal that names what it says; nobody has to be there for that.
#[test]
fn the_datastore_and_its_files_are_taken_from_the_environment() {
    let folder = Folder::new("environment");
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let good = folder.path("good.crt");
    std::fs::write(&good, certificate.pem()).unwrap();
    let (endpoint, database) = ("K3S_DATASTORE_ENDPOINT", "postgres://k3s:s3cret@127.0.0.1:1/k3s");
    let (ca, cert, key) = (
        "K3S_DATASTORE_CAFILE",
        "K3S_DATASTORE_CERTFILE",
        "K3S_DATASTORE_KEYFILE",
    );
    let unheard = format!("{database}?unheard=of");
    // So that our own certificate is looked at without an authority for the database's.
    let required = format!("{database}?sslmode=require");
    let nowhere = "/nonexistent/named-by-the-environment";
    for (environment, says) in [
        (vec![(endpoint, unheard.as_str())], "unheard"),
        (vec![(endpoint, database), (ca, nowhere)], nowhere),
        (
            vec![(endpoint, required.as_str()), (cert, nowhere), (key, good.as_str())],
            nowhere,
        ),
        (
            vec![(endpoint, required.as_str()), (cert, good.as_str()), (key, nowhere)],
            nowhere,
        ),
    ] {
        let log = folder.path("log.txt");
        let _ = std::fs::remove_file(&log);
        let program = Program::start_in(&folder, &["--https-listen-port", "0"], &environment);
        assert!(!program.ends(), "{environment:?}");
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(said.contains(says), "{environment:?}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[test]
fn the_token_is_taken_from_the_environment() {
    let folder = Folder::new("token");
    let environment = [("K3S_TOKEN", "secret-of-the-environment")];
    let program = Program::start_in(&folder, &["--https-listen-port", "0"], &environment);
    program.greeting(&folder);
    let token = std::fs::read_to_string(folder.path("data/server/token")).unwrap();
    assert!(token.ends_with("::server:secret-of-the-environment\n"), "another token");
    program.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_the_file_is_told_as_an_event_of_the_node() {
    let folder = Folder::new("repaired");
    let start = || {
        let program = Program::start(&folder, &["--https-listen-port", "0"]);
        program.greeting(&folder);
        (program, Admin::of(&folder.0.join("k3s.yaml")))
    };
    let (program, _) = start();
    program.stop();
    // Its index is gone: that is damage of which everything can be read back, without a snapshot.
    let file = rusqlite::Connection::open(folder.path("data/server/db/state.db")).unwrap();
    file.execute_batch("DROP INDEX log_by_key").unwrap();
    drop(file);
    let (program, admin) = start();
    let told = async {
        loop {
            let events = admin.get("/api/v1/events").await;
            let mut all = events["items"].as_array().unwrap().iter();
            if let Some(event) = all.find(|event| event["reason"] == "DatastoreRepaired") {
                return event.clone();
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let event = timeout(Duration::from_secs(60), told).await.unwrap();
    assert_eq!(event["type"], "Warning", "{event}");
    assert_eq!(event["involvedObject"]["kind"], "Node", "{event}");
    assert_eq!(event["involvedObject"]["name"], "box", "{event}");
    let message = event["message"].as_str().unwrap();
    assert!(message.starts_with("the datastore was damaged ("), "{message}");
    program.stop();
}
