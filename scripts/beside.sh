#!/usr/bin/env bash
# `scripts/beside.sh "lint test-rust" test-python`: builds, makes the targets that follow the first argument, and beside all that those in
# the first argument, with what the processor has left: tests wait most of the time, and what compiles does not. Says at the end where the
# time went. ARGS are for the targets that follow.
set -euo pipefail
cd "$(dirname "$0")/.."
beside=$1
shift
log=target/beside.log
mkdir -p target
spent=()

make setup-test
: >"$log"
set -m
(
    for target in $beside; do
        start=$SECONDS
        nice -n 5 make "$target" ARGS= >>"$log" 2>&1 || { echo "pinion: make $target failed: see $log, or below at the end" >&2; exit 1; }
        printf ' %s %d s;' "$target" $((SECONDS - start))
    done >"$log.spent"
) &
other=$!
set +m
trap 'kill -- -"$other" 2>/dev/null || true' EXIT

status=0
for target in build "$@"; do
    start=$SECONDS
    if [ "$target" = build ]; then make build ARGS= || exit; else make "$target" || status=$?; fi
    spent+=("$target $((SECONDS - start)) s")
done
start=$SECONDS
wait "$other" || { status=$?; cat "$log" >&2; }
[ "$status" -eq 0 ] || exit "$status"
printf 'pinion: all passed in %d s:' "$SECONDS"
printf ' %s;' "${spent[@]}"
printf ' the rest of what ran beside them %d s (%s)\n' $((SECONDS - start)) "$(sed 's/^ //; s/;$//' "$log.spent")"
