//! Whether the database tells others of commits, and how that is found out.
//!
//! It is tried outside of a write's transaction: inside it would take the write along. A refusal may pass (a standby that is
//! promoted, a setting that somebody takes back), and so it is tried again now and then; a database that knows nothing of it
//! is not asked again on the same connection.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Statement};
use tracing::info;

/// Where servers tell each other of commits.
pub const CHANNEL: &str = "amphipod";

const NOTIFY: &str = "SELECT pg_notify($1, $2)";

/// Between attempts after a refusal: each is a line in the database's log.
const AGAIN: Duration = Duration::from_secs(10);

/// What is known of it.
#[derive(Debug)]
pub enum Telling {
    /// It does, by this statement.
    Tells(Statement),
    /// It does not.
    Mute {
        /// Why, in its words.
        why: String,
        /// When it is asked again, if ever.
        again: Option<Instant>,
    },
}

impl Telling {
    /// Tries it, once. Others, if it works, look for a write in vain.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn find_out(client: &Client, name: &str) -> Result<Self, Error> {
        let tried = async {
            let notify = client.prepare(NOTIFY).await?;
            client.query(&notify, &[&CHANNEL, &name]).await?;
            Ok::<_, Error>(notify)
        };
        match tried.await {
            Ok(notify) => Ok(Self::Tells(notify)),
            Err(error) => match error.as_db_error() {
                Some(refused) => Ok(Self::Mute {
                    why: refused.message().to_owned(),
                    again: again(refused.code(), Instant::now()),
                }),
                None => Err(error),
            },
        }
    }

    /// Tries it again if it is time to. Not within a transaction.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn try_again(&mut self, client: &Client, name: &str) -> Result<(), Error> {
        if let Self::Mute { again: Some(at), .. } = self
            && *at <= Instant::now()
        {
            // Before it is asked: a caller that waits no longer for the answer is not to ask again with its next commit.
            *at = Instant::now() + AGAIN;
            *self = Self::find_out(client, name).await?;
            if matches!(self, Self::Tells(_)) {
                info!("the database tells servers of each other's writes now");
            }
        }
        Ok(())
    }
}

/// When to ask a database again that refused with this code. Pure.
///
/// CockroachDB has no such function; YugabyteDB has one that fails unless LISTEN and NOTIFY were switched on there, for a whole
/// cluster (its documentation, "LISTEN, NOTIFY, UNLISTEN").
fn again(code: &SqlState, now: Instant) -> Option<Instant> {
    let unknown = [
        SqlState::UNDEFINED_FUNCTION,
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::SYNTAX_ERROR,
    ];
    (!unknown.contains(code)).then(|| now + AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_cannot_is_not_asked_again() {
        let now = Instant::now();
        for (code, asked) in [
            (SqlState::UNDEFINED_FUNCTION, false),
            (SqlState::FEATURE_NOT_SUPPORTED, false),
            (SqlState::QUERY_CANCELED, true),
            (SqlState::LOCK_NOT_AVAILABLE, true),
            (SqlState::READ_ONLY_SQL_TRANSACTION, true),
            (SqlState::INSUFFICIENT_PRIVILEGE, true),
            (SqlState::RAISE_EXCEPTION, true),
        ] {
            assert_eq!(again(&code, now), asked.then(|| now + AGAIN), "{code:?}");
        }
    }
}
