#!/usr/bin/env bash
# `make test`: makes each target given, in order, and says at the end where the time went.
set -euo pipefail
cd "$(dirname "$0")/.."
spent=()
for target in "$@"; do
    start=$SECONDS
    # ARGS are for pytest.
    if [ "$target" = test-python ]; then make "$target"; else make "$target" ARGS=; fi
    spent+=("$target $((SECONDS - start)) s")
done
printf 'pinion: all passed in %d s:' "$SECONDS"
printf ' %s;' "${spent[@]:0:${#spent[@]}-1}"
printf ' %s\n' "${spent[-1]}"
