//! A node that reaches no server for long: its pods go on, and nothing of it grows.

use std::io;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing::subscriber::set_default;

use super::{named, seconds};
use crate::kubelet::testing::node::Rig;

/// What is written into a log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn hours_without_a_server_fill_no_log() {
    const HOURS: u64 = 6;
    for restarted in [false, true] {
        let mut rig = Rig::start();
        rig.api
            .grant(json!({"spec": {"expirationSeconds": 3600}, "status": {"token": "secret"}}));
        let volume = json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
        rig.run(
            "web",
            json!({"volumes": [volume], "containers": [named("c", json!({}))]}),
        );
        rig.until("it runs", |rig| rig.phase("web") == "Running").await;
        tokio::time::sleep(seconds(1)).await;
        let log = Log::default();
        let to = log.clone();
        let told = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || to.clone());
        let _guard = set_default(told.finish());
        if restarted {
            rig.agent_dies().await;
        }
        rig.api.unplug();
        if restarted {
            rig.agent_starts();
        }
        tokio::time::sleep(seconds(HOURS * 3_600)).await;
        assert_eq!((rig.started(), rig.signals()), (vec!["c 0".to_owned()], vec![]));
        let lines = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        // Every ten minutes from who follows pods, and from who renews the token.
        let most = usize::try_from(HOURS * 6 * 2).unwrap() + 50;
        let count = lines.lines().count();
        assert!(
            count < most,
            "{count} lines, restarted: {restarted}, such as {:?}",
            lines.lines().last()
        );
        rig.api.plug();
        rig.delete("web", 30);
        rig.until_gone("web").await;
    }
}
