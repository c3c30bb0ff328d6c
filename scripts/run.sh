#!/usr/bin/env bash
# `make run`: a server with the module in the foreground, after a few lines on what to type next.
# Environment: SERVER, PORT, PINION_MODULE (what was built), CARGO_TARGET_DIR. The server works in a private directory that is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
server=${SERVER:-redis-server} port=${PORT:-6379}
module=${PINION_MODULE:-$(realpath -m "${CARGO_TARGET_DIR:-target}")/release/libpinion.so}

if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "pinion: port $port is taken: stop what listens there, or choose another: make run PORT=$((port + 1000))" >&2
    exit 1
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/pinion.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap : INT TERM # the server gets the signal as well, ends, and then the directory goes

cat <<TEXT

Pinion runs on port $port; Ctrl-C ends it. In other terminals, in this directory:

  Python in the server:
    redis-cli -p $port SET greeting hello
    redis-cli -p $port RG.PYEXECUTE "GB('KeysReader').map(lambda r: r['value'].upper()).run('*')"

  A read-through cache (the database behind it is a plain server on port 6380):
    redis-server --port 6380 --save ''
    redis-cli -p 6380 SET x 1
    redis-cli -p $port -X SCRIPT RG.PYEXECUTE SCRIPT ID cache UPGRADE < examples/miss_read_through.py
    redis-cli -p $port GET x

  The same as a play that checks itself, and more, in pictures: make demo

TEXT
"$server" --port "$port" --dir "$dir" --save '' --appendonly no --loadmodule "$module" &
child=$!
# `wait` returns early at a signal: pass it on, then wait for the real end.
trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM
status=0
wait "$child" || status=$?
if [ "$status" -gt 128 ]; then status=0; wait "$child" 2>/dev/null || status=$?; fi
exit "$status"
