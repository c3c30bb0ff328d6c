#!/usr/bin/env bash
# Chooses the one Python that Pinion is built against. Only that belongs here.
#   scripts/python.sh          prints the interpreter's absolute path
#   scripts/python.sh venv     prints the virtual environment that goes with it: .venv/<X.Y>
# $PYTHON chooses; without it (or with the default /usr/bin/python3) the system's Python is taken, and if that is
# absent or too old, the newest other one found. A bare `python3` is never asked: it may be a pyenv shim.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
default=/usr/bin/python3
wanted=${PYTHON:-$default}

fail() { printf 'pinion: %s\n' "$*" >&2; exit 1; }

# Prints "<X.Y> <major * 100 + minor> <base interpreter>", also when asked inside a virtual environment.
probe() {
    "$1" -E -c 'import sys
v = sys.version_info
print("%d.%d %d %s" % (v[0], v[1], v[0] * 100 + v[1], getattr(sys, "_base_executable", None) or sys.executable))' 2>/dev/null
}

found=$(probe "$wanted") || found=
if [ "$wanted" != "$default" ]; then
    [ -n "$found" ] || fail "PYTHON=$wanted is not a Python that runs here: give the full path of one"
else
    for other in /usr/bin/python3.{15..9} /usr/local/bin/python3.{15..9} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.{15..9}*/bin/python3; do
        read -r _ number _ <<<"$found" || true
        [ "${number:-0}" -lt 309 ] || break
        [ ! -x "$other" ] || found=$(probe "$other") || found=
    done
    [ -n "$found" ] || fail "no Python 3 was found: install python3, or choose one with PYTHON=/path/to/python3"
fi

read -r version number path <<<"$found"
[ "$number" -ge 309 ] || fail "Python 3.9 or newer is needed, $wanted is $version: choose another with PYTHON=/path/to/python3"
# Worktrees may share one .venv by a link: all of them call it by the same name.
if [ "${1:-}" = venv ]; then echo "$(readlink -m "$root/.venv")/$version"; else echo "$path"; fi
