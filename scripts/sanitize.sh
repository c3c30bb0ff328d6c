#!/usr/bin/env bash
# Builds the module with a sanitizer, and runs the unit tests and a subset of the others on servers that carry its runtime.
# sanitize.sh address|thread [arguments of pytest]. Environment: PYTHON, SERVER_NAME (redis-7.0), CARGO_TARGET_DIR.
#
# -Zsanitizer is no option of a stable compiler: RUSTC_BOOTSTRAP allows it, so that no other toolchain is needed. The standard library is
# as it comes, without checks of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1; shift
python=$(scripts/python.sh)
venv=$(scripts/python.sh venv)
host=$(rustc -vV | sed -n 's/^host: //p')
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/$kind
out=$target/release
mkdir -p "$out"

export RUSTC_BOOTSTRAP=1 PYO3_PYTHON=$python CARGO_TARGET_DIR=$target CARGO_INCREMENTAL=0
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
# An executable has the runtime inside; a module needs it before anything else.
export RUSTFLAGS="-Zsanitizer=$kind -Cforce-frame-pointers=yes -Zunstable-options"
libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')

case $kind in
address)
    # The runtime of this very compiler, made a library; under its usual name it would be taken for another one.
    runtime=$out/pinion-address.so
    archive=$(rustc --print sysroot)/lib/rustlib/$host/lib/librustc-stable_rt.asan.a
    cp "$archive" "$out/asan.a"
    ar d "$out/asan.a" $(ar t "$out/asan.a" | grep preinit)
    cc -shared -o "$runtime" -Wl,--whole-archive "$out/asan.a" -Wl,--no-whole-archive -lpthread -ldl -lrt -lm
    # Python and servers keep memory until they end, and have their own ways to jump.
    export ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_abort=0:detect_stack_use_after_return=1:alloc_dealloc_mismatch=0:abort_on_error=1
    ;;
thread)
    # That of the compiler cannot be a library; the one of gcc has the same interface.
    runtime=$(readlink -f "$(gcc -print-file-name=libtsan.so)")
    export TSAN_OPTIONS=suppressions=$PWD/scripts/tsan.supp:halt_on_error=0:report_signal_unsafe=0:second_deadlock_stack=1
    ;;
*) echo "sanitize.sh address|thread" >&2; exit 2 ;;
esac

cargo build --lib --release --target "$host" --features sanitized
cp "$target/$host/release/libpinion_core.so" "$out/pinion-cp$(basename "$venv" | tr -d .).so"
(cd loader && env -u RUSTFLAGS -u RUSTC_BOOTSTRAP CARGO_TARGET_DIR="$target/loader" cargo build --release)
cp "$target/loader/release/libpinion.so" "$out/libpinion.so"
ln -sfn "$venv" "$out/venv"

if [ -z "${SKIP_UNIT:-}" ]; then
    LD_LIBRARY_PATH=$libraries PYTHONMALLOC=malloc cargo test --lib --release --target "$host" --features sanitized
fi
PINION_MODULE=$out/libpinion.so PINION_PRELOAD=$runtime PYTHONMALLOC=malloc \
    "$venv/bin/python" -m pytest --server "${SERVER_NAME:-redis-7.0}" -q "$@"
