# shellcheck shell=bash
# Installs what tests and benchmarks need, if it is missing (root, Debian). Sourced by tests/run and tests/bench/run.

# need COMMAND PACKAGE: installs a Debian package if the command is not there.
fresh_index=
need() {
  command -v "$1" >/dev/null && return
  if [ -z "$fresh_index" ]; then
    echo "$0: fetching the package index"
    apt-get update -q >/dev/null || true # a half-synced index must not stop us: the install below tells
    fresh_index=1
  fi
  echo "$0: installing $2"
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$2" >/dev/null ||
    { echo "$0: cannot install $2, which brings $1" >&2; exit 1; }
}

# need_server COMMAND PACKAGE: the same for a package that would start a service of its own. Tests start their own servers.
need_server() {
  command -v "$1" >/dev/null && return
  compgen -G "$1" >/dev/null && return
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e "$policy" ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT # also when the installation fails
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=1
  fi
  need "$1" "$2"
  if [ -n "$made" ]; then
    rm -f "$policy"
    trap - EXIT
  fi
}
