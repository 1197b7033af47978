//! Files for anyone: what lies in `<data>/server/static` is at `/static/`, as in K3s, whose Helm charts are there.
//!
//! Whole files only, and no listings of folders. A file is read while it is sent, a piece at a time.

use std::io;
use std::path::{Path, PathBuf};

use agent::wire::percent;
use agent::wire::status::{Reason, Status};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use super::route::STATIC;
use crate::http::Body;

/// So much of a file is in memory for each who reads it.
const PIECE: usize = 64 * 1024;

/// The file that `path`, which begins with [`STATIC`], names below `folder`.
///
/// # Errors
/// 404 for what is no file below the folder, or cannot be read.
pub async fn answer(folder: &Path, path: &str) -> Result<Response<Body>, Status> {
    let absent = || Status::failure(Reason::NotFound, format!("there is no file {path}"));
    let place = place(folder, path).ok_or_else(absent)?;
    // Before it is opened: a pipe would keep us waiting for its writer.
    let about = tokio::fs::metadata(&place).await.map_err(|_| absent())?;
    if !about.is_file() {
        return Err(absent());
    }
    let file = File::open(&place).await.map_err(|_| absent())?;
    let pieces = stream::unfold(Some(file), |file| async {
        let mut file = file?;
        match piece(&mut file).await {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some((Ok(Frame::data(bytes)), Some(file))),
            Err(error) => Some((Err(error), None)),
        }
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, about.len().into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind(&place)));
    Ok(response)
}

async fn piece(file: &mut File) -> io::Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(PIECE);
    file.read_buf(&mut bytes).await?;
    Ok(bytes.freeze())
}

/// Where the file is, if the path stays below the folder.
fn place(folder: &Path, path: &str) -> Option<PathBuf> {
    let decoded = percent::decode(path.strip_prefix(STATIC)?)?;
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let parts = decoded.split('/');
    parts
        .clone()
        .all(plain)
        .then(|| parts.fold(folder.to_owned(), |place, part| place.join(part)))
}

fn kind(file: &Path) -> &'static str {
    match file.extension().and_then(|end| end.to_str()) {
        Some("tgz" | "gz") => "application/gzip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_path_never_leads_out_of_the_folder() {
        let folder = Path::new("/data/static");
        for (path, place) in [
            ("/static/charts/x.tgz", Some("/data/static/charts/x.tgz")),
            ("/static/a%20b", Some("/data/static/a b")),
            ("/static/", None),
            ("/static/a/", None),
            ("/static//etc/passwd", None),
            ("/static/%2Fetc/passwd", None),
            ("/static/../token", None),
            ("/static/a/%2e%2e/%2e%2e/token", None),
            ("/static/..%2ftoken", None),
            ("/static/./token", None),
            ("/static/x%00", None),
            ("/static/%zz", None),
        ] {
            assert_eq!(super::place(folder, path).as_deref(), place.map(Path::new), "{path}");
        }
    }

    #[tokio::test]
    async fn files_come_whole_and_nothing_else_comes() {
        let scratch = Scratch::new("static");
        let content: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        std::fs::create_dir(scratch.0.join("charts")).unwrap();
        std::fs::write(scratch.0.join("charts/x.tgz"), &content).unwrap();
        nix::unistd::mkfifo(&scratch.0.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let response = answer(&scratch.0, "/static/charts/x.tgz").await.unwrap();
        assert_eq!(response.headers()[CONTENT_LENGTH], "200000");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/gzip");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), content);
        for path in ["/static/charts", "/static/pipe", "/static/none"] {
            assert_eq!(answer(&scratch.0, path).await.unwrap_err().code, 404, "{path}");
        }
    }
}
