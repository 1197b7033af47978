//! Work inside another network namespace, on a thread of its own: a namespace belongs to a thread, and a runtime's threads
//! are shared.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::TcpSocket;

/// A socket for connections to `address`, made in the network namespace that the calling thread is in; it stays there.
///
/// # Errors
/// The kernel's.
pub fn tcp_socket(address: IpAddr) -> io::Result<TcpSocket> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(socket)))
}

/// Runs `work` on a new thread that has entered the network namespace at `path`.
///
/// # Errors
/// When the namespace cannot be opened or entered, or no thread can be had; else what `work` returns.
pub fn inside<T: Send + 'static>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let namespace = File::open(path)?;
    let thread = thread::Builder::new()
        .name("netns".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        })?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread inside a network namespace panicked")))
}
