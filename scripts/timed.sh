#!/usr/bin/env bash
# `make test`: makes each target given, in order, and says at the end where the time went. What tests run on is built beside the first
# ones: its last step keeps one core busy for minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
make setup-test
log=target/build.log
mkdir -p target
make build >"$log" 2>&1 &
builder=$!
trap 'kill "$builder" 2>/dev/null || true' EXIT
built=
spent=()
for target in "$@"; do
    start=$SECONDS
    if [ "$target" = test-python ] && [ -z "$built" ]; then
        wait "$builder" || { cat "$log" >&2; exit 1; }
        built=yes
        spent+=("rest of build $((SECONDS - start)) s")
        start=$SECONDS
    fi
    # ARGS are for pytest.
    if [ "$target" = test-python ]; then make "$target"; else make "$target" ARGS=; fi
    spent+=("$target $((SECONDS - start)) s")
done
printf 'pinion: all passed in %d s:' "$SECONDS"
printf ' %s;' "${spent[@]:0:${#spent[@]}-1}"
printf ' %s\n' "${spent[-1]}"
