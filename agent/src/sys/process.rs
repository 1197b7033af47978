//! Processes: cloning into namespaces, capabilities, closing what must not be inherited.

use std::io;
use std::mem::zeroed;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Duplicates the calling process as `fork` does, the child in new namespaces as `flags` say. `None` in the child.
///
/// # Panics
/// When the process has a second thread: the child would hold locks that nobody opens again.
pub fn fork(flags: CloneFlags) -> io::Result<Option<Pid>> {
    assert_single_threaded();
    let flags = libc::c_long::from(flags.bits() | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: no stack and no shared memory are asked for, so this is fork(2); the order in which architectures take the
    // three last arguments does not matter when all are zero. The only thread there is goes on in both processes.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    let pid = i32::try_from(Errno::result(result)?).map_err(io::Error::other)?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

fn assert_single_threaded() {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, |tasks| tasks.count());
    assert!(threads == 1, "fork with {threads} threads");
}

/// Ends the process at once, running nothing that was registered for its end: what a forked child does.
pub fn leave(code: i32) -> ! {
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default effect back and lets all of them through, as a new program expects.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: setting the default handler runs no code of ours; unknown and fixed signals are refused by the kernel.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Marks every descriptor from 3 on to be closed by the next `execve`; old kernels keep what was already marked.
pub fn close_others_on_exec() {
    let (first, last, close_on_exec): (libc::c_uint, libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX, 4);
    // SAFETY: CLOSE_RANGE_CLOEXEC only sets a flag; no descriptor is closed before a successful execve.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, close_on_exec) };
}

/// Drops every capability outside `keep` (bit n is capability n) from the bounding set, for good.
pub fn bound_capabilities(keep: u64) -> io::Result<()> {
    for number in 0..64_u64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        let zero: libc::c_ulong = 0;
        let number = libc::c_ulong::try_from(number).map_err(io::Error::other)?;
        // SAFETY: PR_CAPBSET_DROP takes a number.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, zero, zero, zero) };
        match Errno::result(result) {
            Ok(_) => {}
            Err(Errno::EINVAL) => return Ok(()), // past the last one this kernel knows
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The capabilities the calling thread may use.
pub fn permitted_capabilities() -> io::Result<u64> {
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    // SAFETY: an all-zero value is valid for integers.
    let mut data: [CapabilityData; 2] = unsafe { zeroed() };
    // SAFETY: version 3 reads a header and writes two data elements, which is what is passed.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    Errno::result(result)?;
    let [low, high] = data;
    Ok(u64::from(low.permitted) | u64::from(high.permitted) << 32)
}

/// Makes `set` the effective and permitted capabilities of the calling thread, and empties the inheritable ones.
pub fn set_capabilities(set: u64) -> io::Result<()> {
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| {
        let bits = u32::try_from((set >> shift) & u64::from(u32::MAX)).unwrap_or(0);
        CapabilityData {
            effective: bits,
            permitted: bits,
            inheritable: 0,
        }
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads a header and two data elements, which is what is passed.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Brings the loopback interface of the calling thread's network namespace up.
pub fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = libc::c_char::try_from(*from).unwrap_or(0);
    }
    // The kernel keeps the flags that cannot be set; up and running is what a loopback has.
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which is passed and lives through the call. The request number's type differs
    // between C libraries, hence the inferred cast.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
