//! Whole lives of pods on a node that is played: the agent from the API's list to its last report, without a process.

mod adopt;
mod alone;
mod end;
mod restart;
mod start;
mod told;

use std::time::Duration;

use serde_json::{Value, json};

/// A pod of one container `c`, with these fields beside name and image.
fn one(policy: &str, container: Value) -> Value {
    json!({"restartPolicy": policy, "containers": [named("c", container)]})
}

/// A container of this name, with these fields beside name and image.
fn named(name: &str, container: Value) -> Value {
    let mut container = container;
    if let Value::Object(fields) = &mut container {
        fields.insert("name".into(), name.into());
        fields.entry("image").or_insert("i".into());
    }
    container
}

/// A handler that runs a command.
fn exec(command: &str) -> Value {
    json!({"exec": {"command": [command]}})
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Whether something took this long, give or take what an agent needs to notice.
fn about(took: Duration, expected: Duration) -> bool {
    took + Duration::from_millis(50) >= expected && took <= expected + Duration::from_millis(500)
}
