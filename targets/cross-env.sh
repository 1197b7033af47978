# How the agent becomes a static musl binary without Docker: Debian's rustc-web builds std from source, zig (from PyPI)
# is C compiler, linker and libc. Sourced by targets/build and tests/run; needs root only for the first set-up.
# Why these versions: docs/decisions/0003-cross-toolchain.md.

RUST_WEB=1.96.
ZIG_VERSION=0.15.2
ZIGBUILD_VERSION=0.24.0
CROSS_DIR=${CROSS_DIR:-$PWD/target/cross}

# Installs what is missing; quiet when nothing is.
cross_setup() {
  if ! [ -e "/usr/src/rustc-$(/usr/bin/rustc --version 2>/dev/null | cut -d' ' -f2)/library/Cargo.lock" ]; then
    apt-get update -q >/dev/null || true # a half-synced index must not stop us; the version check below does
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends rustc-web cargo-web rust-web-src \
      >/dev/null || return
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

# cross_cargo TARGET SUBCOMMAND [ARGS]: cargo-zigbuild with the flags that every musl build of ours needs.
#   -Clink-self-contained=no         std built from source has no self-contained CRT; zig brings it
#   RUST_LIBC_UNSTABLE_MUSL_V1_2_3   64-bit time_t: without it armv7 panics once the clock is past 2038
cross_cargo() {
  local target=$1 subcommand=$2
  shift 2
  env PATH="$CROSS_DIR/venv/bin:/usr/bin:/bin" \
    CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1 RUST_LIBC_UNSTABLE_MUSL_V1_2_3=1 \
    CARGO_TARGET_DIR="$CROSS_DIR/target" CARGO_ZIGBUILD_CACHE_DIR="$CROSS_DIR/zigbuild" \
    RUSTFLAGS="-Clink-self-contained=no ${CROSS_RUSTFLAGS-}" RUSTDOCFLAGS="-Clink-self-contained=no" \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64-static \
    CARGO_TARGET_ARMV7_UNKNOWN_LINUX_MUSLEABIHF_RUNNER=qemu-arm-static \
    cargo-zigbuild "$subcommand" --target "$target" "$@"
}
