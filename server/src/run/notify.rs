//! Tells the service manager that we are ready (`sd_notify`).

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::debug;

/// `socket`: the text of `NOTIFY_SOCKET`; a path, or `@` and an abstract name.
pub fn ready(socket: Option<&str>) {
    let Some(socket) = socket else { return };
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1\n", &address));
    if let Err(error) = sent {
        debug!(error = %error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::files::Scratch;

    #[test]
    fn the_service_manager_hears_that_we_are_ready() {
        let scratch = Scratch::new("notify");
        let path = scratch.0.join("socket");
        let manager = UnixDatagram::bind(&path).unwrap();
        ready(path.to_str());
        let mut bytes = [0; 32];
        let length = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1\n");
        ready(None);
        ready(Some("/nonexistent/socket"));
    }
}
