//! Service account tokens of a pod: asked for, bound to the pod, renewed in time.
//!
//! Time is monotonic from the moment a token came, so that neither an `iat` in the future nor a clock that jumps keeps a
//! token past its life (design, decision 9). Source of 80 % and 24 h: Kubernetes v1.36, `pkg/kubelet/token`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kubelet::ports::{Api, ApiFailure};
use crate::trouble::Trouble;
use crate::wire::object;
use crate::wire::pod::{Pod, TokenProjection, Volume};

/// Kubernetes' default life.
const DEFAULT_SECONDS: u64 = 3600;
/// No token is kept longer, however long it lives.
const LONGEST_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The tokens that a pod holds.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    held: Vec<Held>,
    unrenewed: Trouble,
}

#[derive(Clone)]
struct Held {
    audience: String,
    path: String,
    text: String,
    renew: Instant,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("path", &self.path).finish_non_exhaustive()
    }
}

/// When a token that came now and lives so long is renewed.
fn renew_at(now: Instant, life: Duration) -> Instant {
    now + (life * 4 / 5).min(LONGEST_KEPT)
}

impl Tokens {
    /// The token for a projection.
    pub fn text(&self, source: &TokenProjection) -> Option<&str> {
        let mut held = self.held.iter();
        held.find(|it| it.audience == source.audience && it.path == source.path)
            .map(|it| it.text.as_str())
    }

    fn is_due(&self, source: &TokenProjection, now: Instant) -> bool {
        let mut held = self.held.iter();
        held.find(|it| it.audience == source.audience && it.path == source.path)
            .is_none_or(|it| now >= it.renew)
    }

    /// Asks for those that are missing or due. Ones that are due and cannot be had now stay in use.
    ///
    /// # Errors
    /// [`ApiFailure`] when the server refuses a token that the pod does not have at all. With no server in reach a pod
    /// starts without: whom would it show it to.
    pub async fn renew(&mut self, api: &dyn Api, pod: &Pod, now: Instant) -> Result<(), ApiFailure> {
        let mut all = true;
        let projected = pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref());
        for source in projected
            .flat_map(|it| &it.sources)
            .filter_map(|it| it.service_account_token.as_ref())
        {
            if !self.is_due(source, now) {
                continue;
            }
            match request(api, pod, source, now).await {
                Ok(held) => {
                    self.held
                        .retain(|it| it.audience != held.audience || it.path != held.path);
                    self.held.push(held);
                }
                Err(ApiFailure::Status(status)) if self.text(source).is_none() => {
                    return Err(ApiFailure::Status(status));
                }
                Err(error) => {
                    all = false;
                    match self.unrenewed.is_news(now) {
                        true => tracing::warn!(pod = %pod.key(), %error, "service account token is not renewed yet"),
                        false => tracing::debug!(pod = %pod.key(), %error, "service account token is not renewed yet"),
                    }
                }
            }
        }
        if all {
            self.unrenewed.ends();
        }
        Ok(())
    }

    /// Whether a projection of the volume has no token at all: none was had since the agent started.
    pub fn lack(&self, volume: &Volume) -> bool {
        let sources = volume.projected.iter().flat_map(|it| &it.sources);
        let mut asked = sources.filter_map(|it| it.service_account_token.as_ref());
        asked.any(|source| self.text(source).is_none())
    }
}

async fn request(api: &dyn Api, pod: &Pod, source: &TokenProjection, now: Instant) -> Result<Held, ApiFailure> {
    let account = match pod.spec.service_account_name.as_str() {
        "" => "default",
        name => name,
    };
    let seconds = source.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
    let audiences: Vec<&str> = Some(source.audience.as_str())
        .filter(|it| !it.is_empty())
        .into_iter()
        .collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": seconds,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod.meta.name, "uid": pod.meta.uid},
        }
    });
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{account}/token",
        pod.meta.namespace
    );
    let answer = api.create(&path, &body).await?;
    let granted = object::integer(&answer, &["spec", "expirationSeconds"]).and_then(|it| u64::try_from(it).ok());
    let text = object::text(&answer, &["status", "token"]);
    if text.is_empty() {
        return Err(ApiFailure::Unreachable(
            "the answer to a token request holds no token".into(),
        ));
    }
    // A server that extends 3607 s to a year still wants it renewed by the life that was asked for.
    let life = Duration::from_secs(granted.unwrap_or(seconds).min(seconds));
    Ok(Held {
        audience: source.audience.clone(),
        path: source.path.clone(),
        text: text.to_owned(),
        renew: renew_at(now, life),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_after_four_fifths_of_its_life_and_within_a_day() {
        let now = Instant::now();
        for (life, renewed) in [(3600, 2880), (600, 480), (31_536_000, 86_400)] {
            assert_eq!(
                renew_at(now, Duration::from_secs(life)),
                now + Duration::from_secs(renewed),
                "{life}"
            );
        }
    }
}
