# shellcheck shell=bash
# How the agent becomes a static musl binary without Docker: Debian's rustc-web builds std from source, zig (from PyPI)
# is C compiler, linker and libc. Sourced by targets/build and tests/run; needs root only for the first set-up.
# Why these versions: docs/decisions/0003-cross-toolchain.md.

RUST_WEB=1.96.
ZIG_VERSION=0.15.2
ZIGBUILD_VERSION=0.24.0
CROSS_DIR=${CROSS_DIR:-$PWD/target/cross}

# Installs what is missing; quiet when nothing is.
cross_setup() {
  local sources
  # Where it is missing this must not end a script that ends at the first failure.
  sources=/usr/src/rustc-$(/usr/bin/rustc --version 2>/dev/null | cut -d' ' -f2 || true)/library/Cargo.lock
  if ! { [ -e "$sources" ] && command -v file >/dev/null; }; then
    apt-get update -q >/dev/null || true # a half-synced index must not stop us; the version check below does
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
      rustc-web cargo-web rust-web-src python3-venv file >/dev/null || return
  fi
  case "$(/usr/bin/rustc --version)" in
    "rustc $RUST_WEB"*) ;;
    *)
      echo "cross_setup: want Debian's rustc-web $RUST_WEB*, got: $(/usr/bin/rustc --version)" >&2
      return 1
      ;;
  esac
  if ! [ -x "$CROSS_DIR/venv/bin/cargo-zigbuild" ]; then
    mkdir -p "$CROSS_DIR"
    python3 -m venv "$CROSS_DIR/venv" || return
    "$CROSS_DIR/venv/bin/pip" install -q --disable-pip-version-check "ziglang==$ZIG_VERSION" "cargo-zigbuild==$ZIGBUILD_VERSION" || return
  fi
}

# cross_env COMMAND [ARGS]: runs it with what every musl build of ours needs.
#   RUST_LIBC_UNSTABLE_MUSL_V1_2_3   64-bit time_t: without it armv7 panics once the clock is past 2038
#   CFLAGS                           no path of this machine in what the C code of ring says of itself
# Flags of the caller's own would replace those of cross_flags.
cross_env() {
  env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS PATH="$CROSS_DIR/venv/bin:/usr/bin:/bin" \
    CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1 RUST_LIBC_UNSTABLE_MUSL_V1_2_3=1 \
    CARGO_TARGET_DIR="$CROSS_DIR/target" CARGO_ZIGBUILD_CACHE_DIR="$CROSS_DIR/zigbuild" \
    CFLAGS="-ffile-prefix-map=$(cargo_home)/registry/src/=" \
    "$@"
}

# cross_flags TRIPLE [FLAGS]: exports the flags of rustc for that target.
#   -Clink-self-contained=no   std built from source has no self-contained CRT; zig brings it
#   --remap-path-prefix        panics name their file by crate, and neither the home nor the work tree of who built it
cross_flags() {
  local name=${1^^} source
  name=CARGO_TARGET_${name//-/_}_RUSTFLAGS
  shift
  local flags="-Clink-self-contained=no $* --remap-path-prefix=$PWD/= --remap-path-prefix=/usr/lib/rustlib/src/rust/="
  for source in "$(cargo_home)"/registry/src/*/; do
    flags+=" --remap-path-prefix=$source="
  done
  export "$name=$flags"
}

cargo_home() {
  echo "${CARGO_HOME:-$HOME/.cargo}"
}
