//! `/containerLogs`: which attempt's log is meant, and its bytes as a body that is read as fast as the client reads.
//!
//! Source: Kubernetes v1.36, `pkg/kubelet/kubelet_pods.go` (`GetKubeletContainerLogs`, `validateContainerLogStatus`); the
//! sentences are its own, kubectl shows them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::log_reader::{Left, Reader};
use super::route::{LogOptions, Place, Refusal};
use super::{Body, Port, find};
use crate::kubelet::disk::blocking;
use crate::kubelet::ports::{Containers, Events};
use crate::kubelet::roll::Known;
use crate::kubelet::translate::log_path;
use crate::runtime::Status as RunStatus;
use crate::sys::notice::Notice;
use crate::wire::pod::PodStatus;

/// A notice that is lost, and an end that nobody told, cost no more than this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Answers with a log.
///
/// # Errors
/// [`Refusal`]: no such pod or container, or nothing to show yet.
pub async fn logs(port: &Port, place: &Place, options: LogOptions) -> Result<Body, Refusal> {
    let known = find(&port.roll, place)?;
    let id = wanted(&place.pod, &known.status, &place.container, options.previous)
        .map_err(|text| Refusal::new(400, text))?;
    let (attempt, path) = locate(port, &known, &place.container, id).await?;
    let opened = {
        let path = path.clone();
        blocking(move || Reader::open(&path, options, Timestamp::now())).await
    };
    let reader = opened.map_err(|error| {
        let text = format!("cannot read the log of container {:?}: {error}", place.container);
        Refusal::new(400, text)
    })?;
    let follow = options.follow.then(|| Follow {
        notice: path.parent().and_then(|folder| Notice::of(folder).ok()),
        events: port.containers.events(),
        containers: port.containers.clone(),
        uid: known.pod.meta.uid.clone(),
        container: place.container.clone(),
        attempt,
        look_again: Instant::now() + LOOK_AGAIN,
    });
    Ok(body(reader, follow))
}

/// The id of the container whose log is meant.
fn wanted<'a>(pod: &str, status: &'a PodStatus, container: &str, previous: bool) -> Result<&'a str, String> {
    let about = format!("container {container:?} in pod {pod:?}");
    let status = status
        .container(container)
        .ok_or_else(|| format!("{about} is not available"))?;
    let (state, last) = (&status.state, status.last_state.terminated.as_ref());
    let last = last.map(|end| end.container_id.as_str()).unwrap_or_default();
    if previous {
        return match last {
            "" => Err(format!("previous terminated {about} not found")),
            id => Ok(id),
        };
    }
    match (&state.running, &state.terminated, &state.waiting) {
        (Some(_), _, _) => Ok(&status.container_id),
        (None, Some(end), _) if !end.container_id.is_empty() => Ok(&end.container_id),
        (None, Some(_), _) if last.is_empty() => Err(format!("{about} is terminated")),
        (None, _, _) if !last.is_empty() => Ok(last),
        (None, _, Some(waiting)) => Err(match waiting.reason.as_str() {
            "ErrImagePull" => format!("{about} is waiting to start: image can't be pulled"),
            "ImagePullBackOff" => format!("{about} is waiting to start: trying and failing to pull image"),
            reason => format!("{about} is waiting to start: {reason}"),
        }),
        (None, _, None) => Err(format!("{about} is waiting to start - no logs yet")),
    }
}

/// Number and log of the attempt with this id. The runtime forgets attempts with their sandbox while logs stay: then it
/// is the newest log there is of those that are older than what the runtime knows.
async fn locate(port: &Port, known: &Known, container: &str, id: &str) -> Result<(u32, PathBuf), Refusal> {
    let state = port.containers.pod(&known.pod.meta.uid).await;
    let state = state.map_err(|error| Refusal::new(500, error.to_string()))?;
    let logs = port.settings.logs.clone();
    let of = |attempt: u32| log_path(&logs, &known.pod, container, attempt);
    let all = || {
        let all = state.iter().flat_map(|pod| &pod.containers);
        all.filter(|one| one.name == container)
    };
    if let Some(found) = all().find(|one| crate::kubelet::status::container_id(&one.id) == id) {
        return Ok((found.attempt, of(found.attempt)));
    }
    let oldest = all().map(|one| one.attempt).min();
    let folder = of(0).parent().map(Path::to_owned).unwrap_or_default();
    let newest = blocking(move || newest_log(&folder, oldest)).await.unwrap_or_default();
    match newest {
        Some(attempt) => Ok((attempt, of(attempt))),
        None => Err(Refusal::new(400, format!("unable to retrieve container logs for {id}"))),
    }
}

/// The newest attempt that has a log, of those before `before`.
fn newest_log(folder: &Path, before: Option<u32>) -> io::Result<Option<u32>> {
    let names = std::fs::read_dir(folder)?.flatten().map(|entry| entry.file_name());
    let number = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".log")?.parse().ok();
    let older = |number: &u32| before.is_none_or(|before| *number < before);
    Ok(names.filter_map(number).filter(older).max())
}

/// What it takes to go on until the container ends.
struct Follow {
    /// Without it (the kernel has none left) we look every second.
    notice: Option<Notice>,
    events: Box<dyn Events>,
    containers: Arc<dyn Containers>,
    uid: String,
    container: String,
    attempt: u32,
    /// When to ask whether it still runs, however much happens in the folder: other attempts write there too.
    look_again: Instant,
}

impl Follow {
    /// Waits until there may be more to read; false when the container has ended, and nothing will be added any more.
    async fn wait(&mut self) -> bool {
        let changed = async {
            match &self.notice {
                Some(notice) if notice.changed().await.is_ok() => {}
                _ => std::future::pending().await,
            }
        };
        let told = async { while self.events.next().await.is_some_and(|uid| uid != self.uid) {} };
        tokio::select! {
            () = changed => if Instant::now() < self.look_again {
                return true;
            },
            () = told => {}
            () = sleep_until(self.look_again) => {}
        }
        self.look_again = Instant::now() + LOOK_AGAIN;
        self.runs().await
    }

    /// Its last lines are on disk before its end is.
    async fn runs(&mut self) -> bool {
        match self.containers.pod(&self.uid).await {
            Ok(Some(pod)) => pod.containers.iter().any(|one| {
                one.name == self.container && one.attempt == self.attempt && one.status == RunStatus::Running
            }),
            Ok(None) => false,
            Err(_) => true, // the runtime will say it later
        }
    }
}

struct Reading {
    /// Away while it reads on another thread.
    reader: Option<Reader>,
    follow: Option<Follow>,
    left: Left,
}

fn body(reader: Reader, follow: Option<Follow>) -> Body {
    let reading = Reading {
        reader: Some(reader),
        follow,
        left: Left::More,
    };
    let frames = stream::try_unfold(reading, |mut reading| async move {
        let bytes = reading.next().await?;
        Ok(bytes.map(|bytes| (Frame::data(bytes), reading)))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Reading {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match (self.left, &mut self.follow) {
                (Left::More, _) => {}
                (Left::Nothing, _) | (Left::CaughtUp, None) => return Ok(None),
                (Left::CaughtUp, Some(follow)) => {
                    if !follow.wait().await {
                        self.follow = None; // once more to the end
                    }
                }
            }
            let Some(mut reader) = self.reader.take() else {
                return Ok(None);
            };
            let (reader, left, out) = blocking(move || {
                let mut out = Vec::new();
                let left = reader.read(&mut out)?;
                Ok((reader, left, out))
            })
            .await?;
            (self.reader, self.left) = (Some(reader), left);
            if !out.is_empty() {
                return Ok(Some(out.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::pod::Pod;

    fn ask(state: Value, last: Value, previous: bool) -> Result<String, String> {
        let pod = json!({
            "metadata": {"name": "web", "uid": "u"},
            "status": {"containerStatuses": [{"name": "c", "containerID": "now", "state": state, "lastState": last}]},
        });
        let pod = Pod::of(&pod).unwrap();
        wanted("web", &pod.status, "c", previous).map(ToOwned::to_owned)
    }

    #[test]
    fn the_log_is_that_of_the_container_a_user_means() {
        let nothing = || json!({});
        let ended = |id: &str| json!({"terminated": {"containerID": id}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let about = "container \"c\" in pod \"web\"";
        for (state, last, previous, expected) in [
            (json!({"running": {}}), ended("before"), false, Ok("now".to_owned())),
            (json!({"running": {}}), ended("before"), true, Ok("before".to_owned())),
            (
                json!({"running": {}}),
                nothing(),
                true,
                Err(format!("previous terminated {about} not found")),
            ),
            (ended("this"), ended("before"), false, Ok("this".to_owned())),
            (ended(""), ended("before"), false, Ok("before".to_owned())),
            (ended(""), nothing(), false, Err(format!("{about} is terminated"))),
            (
                waiting("CrashLoopBackOff"),
                ended("crashed"),
                false,
                Ok("crashed".to_owned()),
            ),
            (
                waiting("ContainerCreating"),
                nothing(),
                false,
                Err(format!("{about} is waiting to start: ContainerCreating")),
            ),
            (
                waiting("ImagePullBackOff"),
                nothing(),
                false,
                Err(format!("{about} is waiting to start: trying and failing to pull image")),
            ),
            (
                nothing(),
                nothing(),
                false,
                Err(format!("{about} is waiting to start - no logs yet")),
            ),
        ] {
            assert_eq!(ask(state.clone(), last, previous), expected, "{state} {previous}");
        }
        let status = PodStatus::default();
        let unknown = wanted("web", &status, "c", false).unwrap_err();
        assert_eq!(unknown, format!("{about} is not available"));
    }

    #[test]
    fn the_newest_log_has_the_highest_number() {
        let dir = crate::scratch::TempDir::new("newest-log");
        assert_eq!(newest_log(dir.path(), None).unwrap(), None);
        for name in ["9.log", "10.log", "10.log.20260101-000000", "x.log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(newest_log(dir.path(), None).unwrap(), Some(10));
        assert_eq!(newest_log(dir.path(), Some(10)).unwrap(), Some(9));
        assert_eq!(newest_log(dir.path(), Some(9)).unwrap(), None);
        assert!(newest_log(&dir.path().join("none"), None).is_err());
    }
}
