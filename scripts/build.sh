#!/usr/bin/env bash
# Builds the loader, libpinion.so, and beside it the module for one Python, pinion-cp<XY>.so. The link `venv` there is the
# environment that the loader takes if it is given none.
# Environment: PYTHON (see python.sh), PROFILE (of the module: release), CARGO_TARGET_DIR, OUT (target/release), SHIPPED (yes: no
# path of this machine is in what comes out, see dist.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(scripts/python.sh)
venv=$(scripts/python.sh venv)
profile=${PROFILE:-release}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=${OUT:-$target/release}
tag=cp$(basename "$venv" | tr -d .)
[ "${SHIPPED:-}" != yes ] || . scripts/remap.sh

PYO3_PYTHON=$python CARGO_TARGET_DIR=$target cargo build --lib --profile "$profile"
# Its profile is its own; what makes the module quick to build is not for it.
(cd loader && env -u CARGO_PROFILE_RELEASE_OPT_LEVEL -u CARGO_PROFILE_RELEASE_LTO -u CARGO_PROFILE_RELEASE_CODEGEN_UNITS \
    -u CARGO_PROFILE_RELEASE_DEBUG -u CARGO_INCREMENTAL CARGO_TARGET_DIR="$target/loader" cargo build --release)

# A server that runs keeps the file that it has opened.
place() {
    cmp -s "$1" "$2" || { cp "$1" "$2.new" && mv -f "$2.new" "$2"; }
}
mkdir -p "$out"
place "$target/$profile/libpinion_core.so" "$out/pinion-$tag.so"
place "$target/loader/release/libpinion.so" "$out/libpinion.so"
[ "$out" != "$target/release" ] || ln -sfn "$venv" "$out/venv"
