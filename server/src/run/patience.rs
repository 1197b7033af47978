//! Waiting for a datastore that is away: a server that starts before its database waits, says so, and goes on alone.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

/// Between two tries: at first, and at most.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);

/// Tries until it works, or fails in a way that does not pass by itself.
///
/// # Errors
/// The first error that does not pass.
pub async fn patiently<T, E: Display>(
    what: &'static str,
    passes: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut delay = FIRST;
    loop {
        match attempt().await {
            Err(error) if passes(&error) => {
                warn!(error = %error, retry_ms = delay.as_millis(), "{what}: waiting for the datastore");
                sleep(delay).await;
                delay = (delay * 2).min(LONGEST);
            }
            outcome => {
                if delay > FIRST && outcome.is_ok() {
                    info!("{what}: the datastore answers");
                }
                return outcome;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_tried_again_and_what_does_not_is_told() {
        let mut tries = 0;
        let outcome = patiently(
            "test",
            |error| *error == "away",
            async || {
                tries += 1;
                if tries < 9 { Err("away") } else { Ok(tries) }
            },
        );
        assert_eq!(outcome.await, Ok(9));
        let outcome: Result<(), _> = patiently("test", |error| *error == "away", async || Err("wrong")).await;
        assert_eq!(outcome, Err("wrong"));
    }
}
