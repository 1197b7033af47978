//! The administrator's end of the control socket.

use std::io;
use std::path::Path;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::{Reply, Request, socket};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody serves the socket.
    #[error("no server runs here")]
    Nobody,
    /// The socket is there and cannot be used.
    #[error("cannot ask the server that runs here: {0}")]
    Unreachable(io::Error),
    /// What was asked may have been done.
    #[error("the server ended before it answered: look at its log for what has become of it")]
    Ended,
    /// It says why.
    #[error("{0}")]
    Refused(String),
}

/// Asks the server whose state is in `data_dir`; `progress` hears how far it is. Returns its text.
///
/// # Errors
/// [`AskError`].
pub async fn ask(
    data_dir: &Path,
    request: &Request,
    mut progress: impl FnMut(usize, usize),
) -> Result<String, AskError> {
    let (_folder, path) = socket(data_dir).map_err(absent)?;
    let stream = UnixStream::connect(path).await.map_err(absent)?;
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_string(request).map_err(|error| AskError::Unreachable(error.into()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await.map_err(AskError::Unreachable)?;
    let mut lines = stream.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Reply::Progress { done, of }) => progress(done, of),
            Ok(Reply::Done(text)) => return Ok(text),
            Ok(Reply::Failed(why)) => return Err(AskError::Refused(why)),
            Err(error) => return Err(AskError::Unreachable(error.into())),
        }
    }
    Err(AskError::Ended)
}

fn absent(error: io::Error) -> AskError {
    match error.kind() {
        // A server that was killed leaves its socket.
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Nobody,
        _ => AskError::Unreachable(error),
    }
}
