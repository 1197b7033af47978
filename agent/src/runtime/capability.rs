//! Capabilities by name, and the set a container gets.

use super::RuntimeError;

/// Bit n is the n-th name. Source: Linux `include/uapi/linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers get that ask for nothing. Source: containerd v2 `pkg/oci.defaultUnixCaps`.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All that this code knows.
pub(super) const ALL: u64 = (1 << NAMES.len()) - 1;
/// Making device nodes: harmless only where a cgroup says which devices may be opened.
pub(super) const MKNOD: u64 = 1 << 27;

/// The set after adding to and dropping from the default; `ALL` is taken first, single names after it.
///
/// # Errors
/// [`RuntimeError::Spec`] names what is no capability.
pub(super) fn set(add: &[String], drop: &[String]) -> Result<u64, RuntimeError> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set = if add.iter().any(is_all) {
        ALL
    } else {
        bits(DEFAULT.iter().copied())?
    };
    if drop.iter().any(is_all) {
        set = 0;
    }
    let single = |names: &[String]| bits(names.iter().filter(|name| !is_all(name)).map(String::as_str));
    Ok((set | single(add)?) & !single(drop)?)
}

fn bits<'a>(names: impl Iterator<Item = &'a str>) -> Result<u64, RuntimeError> {
    let mut bits = 0;
    for name in names {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match NAMES.iter().position(|known| *known == short) {
            Some(number) => bits |= 1 << number,
            None => return Err(RuntimeError::Spec(format!("unknown capability {name:?}"))),
        }
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn capabilities_are_added_to_and_dropped_from_the_default() {
        let default = set(&[], &[]).unwrap();
        assert_eq!(default, 0xa804_25fb, "as `CapBnd` of a container under containerd");
        for (add, drop, expected) in [
            (vec!["NET_ADMIN"], vec![], default | 1 << 12),
            (vec!["cap_net_admin"], vec!["CAP_MKNOD"], (default | 1 << 12) & !MKNOD),
            (vec!["ALL"], vec![], ALL),
            (vec![], vec!["all"], 0),
            (vec!["NET_BIND_SERVICE"], vec!["ALL"], 1 << 10),
            (vec!["ALL"], vec!["SYS_ADMIN"], ALL & !(1 << 21)),
        ] {
            assert_eq!(set(&text(&add), &text(&drop)).unwrap(), expected, "{add:?} {drop:?}");
        }
        assert!(set(&text(&["FLY"]), &[]).is_err());
    }
}
