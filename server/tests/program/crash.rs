//! `k3s server` on SQLite is killed under writers, again and again: what it acknowledged stays, and no resourceVersion is
//! given twice.
//!
//! `tests/store/crash.rs` does the same to the store alone, more often and harder; here all that lies between a client
//! and the file takes part: the cache, the registry, the identity, what a start repairs and writes.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::rig::{Admin, Connection, Folder, Program};
use crate::witness::{Answer, Sent, Witness, revision};

const KILLS: u64 = 10;
const WRITERS: u64 = 6;
/// So much is acknowledged, and watched, in each life but the short ones.
const ENOUGH: usize = 20;
/// Ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(60);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_of_a_server_lose_no_acknowledged_write_and_repeat_no_resource_version() {
    let folder = Folder::new("crash");
    let mut witness = Witness::default();
    for round in 0..KILLS {
        let program = Program::start(&folder, &["--https-listen-port", "0"]);
        // Every fifth dies while it starts; the others have time to write, however long the start took.
        if round % 5 == 4 {
            sleep(Duration::from_millis(round * 53 % 300)).await;
            program.kill();
            continue;
        }
        program.greeting(&folder);
        let admin = Admin::of(&folder.0.join("k3s.yaml"));
        let list = admin.get(MAPS).await;
        witness.a_life_begins(&list);
        let (told, mut hears) = unbounded_channel();
        let clients = clients(&admin, &witness, &list, &told);
        drop(told);
        let (mut all, mut acknowledged, mut watched) = (Vec::new(), 0, 0);
        while acknowledged < ENOUGH || watched < ENOUGH {
            let told = timeout(PATIENCE, hears.recv()).await.unwrap().unwrap();
            match &told {
                Told::Sent(_) => acknowledged += 1,
                Told::Saw(_) => watched += 1,
                Told::Renewed(..) => {}
            }
            all.push(told);
        }
        sleep(Duration::from_millis(round * 67 % 250)).await;
        program.kill();
        clients.join_all().await;
        while let Some(told) = hears.recv().await {
            all.push(told);
        }
        all.into_iter().for_each(|told| told.tell(&mut witness));
    }
    let program = Program::start(&folder, &["--https-listen-port", "0"]);
    program.greeting(&folder);
    let admin = Admin::of(&folder.0.join("k3s.yaml"));
    witness.a_life_begins(&admin.get(MAPS).await);
    program.stop();
    let (acknowledged, watched) = (witness.acknowledged, witness.watched);
    assert!(
        acknowledged > 100 && watched > 100,
        "too little was written to mean anything: {acknowledged} acknowledged, {watched} watched"
    );
}

/// What a client was told.
enum Told {
    Sent(Sent),
    Saw(Value),
    /// A lease's resourceVersion. The write itself may be forgotten: leases are not synced to the disk one by one.
    Renewed(u64, u64),
}

impl Told {
    fn tell(self, witness: &mut Witness) {
        match self {
            Self::Sent(sent) => witness.hear(sent),
            Self::Saw(event) => witness.saw(&event),
            Self::Renewed(revision, time) => witness.given(revision, "lease", Some(time)),
        }
    }
}

/// Writers, one that renews a lease, and one that watches, each until the server is gone.
fn clients(admin: &Admin, witness: &Witness, list: &Value, told: &UnboundedSender<Told>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for writer in 0..WRITERS {
        let (admin, told) = (admin.clone(), told.clone());
        let name = format!("writer-{writer}");
        let number = witness.number(&name);
        let items = list["items"].as_array().unwrap().iter();
        let seen = items
            .map(|item| &item["metadata"])
            .find(|meta| meta["name"] == name.as_str());
        let seen = seen.map(|meta| meta["resourceVersion"].clone());
        clients.spawn(async move {
            let connection = admin.connect().await;
            let mut writer = Writer { name, number, seen };
            if let Some(mut connection) = connection {
                while writer.write(&mut connection, &told).await.is_some() {}
            }
        });
    }
    let (renewing, noting) = (admin.clone(), told.clone());
    clients.spawn(async move { renew(&renewing, &noting).await.unwrap_or_default() });
    let (watching, noting, start) = (admin.clone(), told.clone(), revision(list));
    clients.spawn(async move { watch(&watching, start, &noting).await.unwrap_or_default() });
    clients
}

/// Counts an object of its own up, and makes and removes another one every few writes.
struct Writer {
    name: String,
    number: Option<u64>,
    seen: Option<Value>,
}

impl Writer {
    /// `None` once the server is gone.
    async fn write(&mut self, connection: &mut Connection, told: &UnboundedSender<Told>) -> Option<()> {
        let number = self.number.map_or(0, |number| number + 1);
        let mut object = map(&self.name, number);
        let path = format!("{MAPS}/{}", self.name);
        let answer = match &self.seen {
            None => connection.call("POST", MAPS, &object).await,
            Some(seen) => {
                // Another's write would be a conflict, and there are no others.
                object["metadata"]["resourceVersion"] = seen.clone();
                connection.call("PUT", &path, &object).await
            }
        };
        let answer = heard(told, &self.name, Some(number), answer)?;
        self.number = Some(number);
        self.seen = Some(answer["metadata"]["resourceVersion"].clone());
        if number.is_multiple_of(3) {
            let name = format!("{}-{number}", self.name);
            let answer = connection.call("POST", MAPS, &map(&name, number)).await;
            heard(told, &name, Some(number), answer)?;
            if number.is_multiple_of(2) {
                let answer = connection.call("DELETE", &format!("{MAPS}/{name}"), &Value::Null).await;
                heard(told, &name, None, answer)?;
            }
        }
        Some(())
    }
}

fn map(name: &str, number: u64) -> Value {
    json!({"metadata": {"name": name}, "data": {"number": number.to_string(), "rest": "x".repeat(300)}})
}

/// Who hears it is there to the end.
fn note(told: &UnboundedSender<Told>, what: Told) {
    told.send(what).unwrap_or_default();
}

/// Notes what became of a write; `None` if nobody knows.
fn heard(told: &UnboundedSender<Told>, name: &str, number: Option<u64>, answer: Option<(u16, Value)>) -> Option<Value> {
    let object = answer.map(|(code, answer)| {
        assert!(matches!(code, 200 | 201), "{name}: {answer}");
        answer
    });
    let answer = match &object {
        None => Answer::Unknown,
        Some(object) => Answer::Done(number.map(|_| revision(object))),
    };
    let name = name.to_owned();
    note(told, Told::Sent(Sent { name, number, answer }));
    object
}

async fn renew(admin: &Admin, told: &UnboundedSender<Told>) -> Option<()> {
    let mut connection = admin.connect().await?;
    let lease = json!({"metadata": {"name": "lease"}, "spec": {"holderIdentity": "test"}});
    // It is there from the second life on, unless the first forgot it.
    connection.call("POST", LEASES, &lease).await?;
    let path = format!("{LEASES}/lease");
    let (_, mut lease) = connection.call("GET", &path, &Value::Null).await?;
    for transitions in 0_u64.. {
        lease["spec"]["leaseTransitions"] = transitions.into();
        let (code, answer) = connection.call("PUT", &path, &lease).await?;
        assert_eq!(code, 200, "{answer}");
        note(told, Told::Renewed(revision(&answer), transitions));
        lease = answer;
        sleep(Duration::from_millis(5)).await;
    }
    None
}

async fn watch(admin: &Admin, start: u64, told: &UnboundedSender<Told>) -> Option<()> {
    let mut connection = admin.connect().await?;
    let path = format!("{MAPS}?watch=true&resourceVersion={start}");
    let mut body = connection.send("GET", &path, &Value::Null).await?.into_body();
    let mut text = Vec::new();
    loop {
        let frame = body.frame().await?.ok()?;
        text.extend_from_slice(frame.data_ref()?);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            note(told, Told::Saw(serde_json::from_slice(&line).unwrap()));
        }
    }
}
