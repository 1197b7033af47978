//! Pseudo-terminals.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use tokio::io::unix::AsyncFd;

/// Opens a new terminal of the `devpts` at `ptmx`: its controlling side and its program's side.
pub fn open(ptmx: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::open(ptmx, flags, Mode::empty())?;
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int. Request numbers have another type in every C library, hence the inferred casts.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked) })?;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let peer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags.bits()) };
    let peer = Errno::result(peer)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((master, unsafe { OwnedFd::from_raw_fd(peer) }))
}

/// Makes `terminal` the controlling terminal of the calling session leader.
pub fn control(terminal: &impl AsRawFd) -> io::Result<()> {
    let steal: libc::c_int = 0;
    // SAFETY: TIOCSCTTY takes a number by value.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, steal) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Registers the controlling side with the reactor, so that reading and writing can be waited for.
pub fn register(master: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlag::from_bits_truncate(fcntl(&master, FcntlArg::F_GETFL)?);
    fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: an owned descriptor stays open and the same until it is dropped, which the AsyncFd does last.
    unsafe { AsyncFd::register(master) }.map_err(io::Error::from)
}

/// Sets a terminal's size in characters; its foreground processes get SIGWINCH.
pub fn resize(terminal: &impl AsRawFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize, which is passed and lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
