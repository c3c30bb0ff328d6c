#!/usr/bin/env bash
# Builds the module with AddressSanitizer, and runs tests on servers that carry its runtime.
# sanitize.sh [arguments of pytest]. Environment: PYTHON, SERVER_NAME (redis-7.0), CARGO_TARGET_DIR.
#
# -Zsanitizer is no option of a stable compiler: RUSTC_BOOTSTRAP allows it, so that no other toolchain is needed. The standard library is
# as it comes, without checks of its own; of the interpreter and the server only what goes through the C library is seen.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(scripts/python.sh)
venv=$(scripts/python.sh venv)
host=$(rustc -vV | sed -n 's/^host: //p')
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/address
out=$target/release
mkdir -p "$out"

export RUSTC_BOOTSTRAP=1 PYO3_PYTHON=$python CARGO_TARGET_DIR=$target CARGO_INCREMENTAL=0
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers=yes -Zunstable-options"

# The runtime of this very compiler, made a library; under its usual name it would be taken for another one.
runtime=$out/pinion-address.so
cp "$(rustc --print sysroot)/lib/rustlib/$host/lib/librustc-stable_rt.asan.a" "$out/asan.a"
ar d "$out/asan.a" $(ar t "$out/asan.a" | grep preinit)
cc -shared -o "$runtime" -Wl,--whole-archive "$out/asan.a" -Wl,--no-whole-archive -lpthread -ldl -lrt -lm
# Python and servers keep memory until they end, and tell of crashes by themselves. Whoever is found wrong ends at once: a server's own report of
# an abort would join threads twice, which is wrong, too.
export ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_abort=0:alloc_dealloc_mismatch=0:abort_on_error=0

cargo build --lib --release --target "$host" --features sanitized
cp "$target/$host/release/libpinion_core.so" "$out/pinion-cp$(basename "$venv" | tr -d .).so"
(cd loader && env -u RUSTFLAGS -u RUSTC_BOOTSTRAP CARGO_TARGET_DIR="$target/loader" cargo build --release)
cp "$target/loader/release/libpinion.so" "$out/libpinion.so"
ln -sfn "$venv" "$out/venv"

PINION_MODULE=$out/libpinion.so PINION_PRELOAD=$runtime PYTHONMALLOC=malloc \
    "$venv/bin/python" -m pytest --server "${SERVER_NAME:-redis-7.0}" -q "$@"
