//! What clients were told over all lives of a server, and what must therefore be so in the next.

use std::collections::BTreeMap;

use serde_json::Value;

/// A write that was sent.
#[derive(Debug)]
pub struct Sent {
    pub name: String,
    /// What the object holds then; `None`: it is gone.
    pub number: Option<u64>,
    pub answer: Answer,
}

/// What became of it.
#[derive(Debug)]
pub enum Answer {
    /// It was acknowledged, with this resourceVersion where answers have one.
    Done(Option<u64>),
    /// Nobody knows: the server died before it answered.
    Unknown,
}

/// All that was said.
#[derive(Debug, Default)]
pub struct Witness {
    objects: BTreeMap<String, Known>,
    /// What was acknowledged or watched under which resourceVersion.
    writes: BTreeMap<u64, String>,
    /// The highest resourceVersion that anybody was given before the present life.
    before: u64,
    newest: u64,
    pub acknowledged: usize,
    pub watched: usize,
}

#[derive(Debug, Default)]
struct Known {
    number: Option<u64>,
    /// A write of which nobody knows.
    perhaps: Option<Option<u64>>,
}

impl Witness {
    /// The first list of a life: it holds what was acknowledged, and is no older.
    pub fn a_life_begins(&mut self, list: &Value) {
        self.before = self.newest;
        let revision = revision(list);
        assert!(revision >= self.before, "went back from {} to {revision}", self.before);
        self.newest = revision;
        let mut found: BTreeMap<&str, u64> = BTreeMap::new();
        for item in list["items"].as_array().unwrap() {
            let name = item["metadata"]["name"].as_str().unwrap();
            if let Some(number) = number(item) {
                found.insert(name, number);
            }
        }
        for (name, known) in &mut self.objects {
            let now = found.remove(name.as_str());
            let perhaps = known.perhaps.take();
            assert!(
                now == known.number || perhaps == Some(now),
                "{name}: holds {now:?}; {:?} was acknowledged, and {perhaps:?} sent after it",
                known.number
            );
            known.number = now;
        }
        assert!(found.is_empty(), "nobody wrote {found:?}");
    }

    /// What an object holds, as far as its only writer knows.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.objects.get(name).and_then(|known| known.number)
    }

    pub fn hear(&mut self, sent: Sent) {
        let Sent { name, number, answer } = sent;
        match answer {
            Answer::Done(revision) => {
                self.acknowledged += 1;
                if let Some(revision) = revision {
                    self.given(revision, &name, number);
                }
                self.objects.insert(name, Known { number, perhaps: None });
            }
            Answer::Unknown => self.objects.entry(name).or_default().perhaps = Some(number),
        }
    }

    /// A watch showed this.
    pub fn saw(&mut self, event: &Value) {
        let object = &event["object"];
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let number = number(object).filter(|_| event["type"] != "DELETED");
        self.watched += 1;
        self.given(revision(object), &name, number);
    }

    /// A write that may be forgotten, but whose resourceVersion nothing else may get.
    pub fn given(&mut self, revision: u64, name: &str, number: Option<u64>) {
        let write = format!("{name} {number:?}");
        assert!(revision > self.before, "{revision} is handed out again, for {write}");
        self.newest = self.newest.max(revision);
        let first = self.writes.entry(revision).or_insert_with(|| write.clone());
        assert_eq!(*first, write, "two writes of resourceVersion {revision}");
    }
}

/// What a test's object holds; `None` for those of the server.
fn number(object: &Value) -> Option<u64> {
    object["data"]["number"].as_str()?.parse().ok()
}

pub fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}
