#!/usr/bin/env bash
# Makes this machine able to build and run Pinion (`setup.sh runtime`), to play the demo (`setup.sh demo`), to test it as well
# (`setup.sh test`), to play what is shipped in a Debian of its own (`setup.sh package`), to run other people's clients against it
# (`setup.sh compat`), to build the site of the docs (`setup.sh docs`), to draw the benchmarks (`setup.sh bench`), or to count instructions
# (`setup.sh counts`).
# Installs only what is missing; a second run installs nothing and asks no registry. Whatever the project needs on a
# machine is installed here or nowhere (the servers of the test matrix: tests/servers.py).
# Environment: PYTHON (see python.sh), SERVER (the redis-server that `make run` will start).
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-runtime}
case $mode in test | compat | docs | bench | counts | package) testing=yes ;; *) testing= ;; esac
server=${SERVER:-redis-server}

say() { printf 'pinion: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- Rust ------------------------------------------------------------------------------------------------------------
have cargo && have rustc || fail "Rust 1.88 or newer is needed, found none: install it with rustup"
rust=$(rustc --version 2>/dev/null | awk '{print $2}') || rust=
[ -n "$rust" ] || fail "rustc does not run: repair it with rustup"
[ "$(printf '1.88\n%s\n' "$rust" | sort -V | head -n 1)" = 1.88 ] ||
    fail "Rust 1.88 or newer is needed, found $rust: install it with rustup"
if [ "$mode" = test ]; then
    for component in clippy rustfmt; do
        have "cargo-${component/rustfmt/fmt}" || fail "cargo ${component/rustfmt/fmt} is needed: rustup component add $component"
    done
fi

# --- packages of the system ------------------------------------------------------------------------------------------
apt_install() {
    have apt-get || fail "missing on this machine: $*; there is no apt-get here, so install what corresponds to them"
    local sudo=() log=.cache/apt.log status=0
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || fail "missing on this machine: $*; as root: apt-get install $*"
        sudo=(sudo)
    fi
    mkdir -p .cache
    say "installing $* (apt-get, log in $log)"
    # A service that starts by itself after the installation would sit on port 6379.
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod 755 "$policy"
    fi
    {
        "${sudo[@]}" apt-get update -q &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -q -y --no-install-recommends "$@"
    } >"$log" 2>&1 </dev/null || status=$?
    [ -z "$ours" ] || "${sudo[@]}" rm -f "$policy"
    if [ -d /run/systemd/system ] && [[ " $* " == *" redis-server "* ]]; then
        "${sudo[@]}" systemctl disable --quiet redis-server >>"$log" 2>&1 || true
    fi
    [ "$status" -eq 0 ] || { tail -n 5 "$log" >&2; fail "apt-get could not install: $*"; }
}

# True if the Python given has the headers (kind=headers), a shared libpython (library) or the venv module (venv).
python_has() {
    "$python" -E - "$1" <<'PY'
import importlib.util, os, sys, sysconfig

def present(kind):
    var = sysconfig.get_config_var
    if kind == "headers":
        return os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
    if kind == "venv":
        return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
    folders = [var("LIBDIR"), var("LIBPL"), os.path.join(sys.base_prefix, "lib")]
    library = var("LDLIBRARY") or ""
    return ".so" in library and any(os.path.exists(os.path.join(d, library)) for d in folders if d)

sys.exit(0 if present(sys.argv[1]) else 1)
PY
}

missing=()
libclang=("${LIBCLANG_PATH:-/nowhere}"/libclang*.so* /usr/lib/llvm-*/lib/libclang*.so* /usr/lib*/libclang*.so* /usr/lib/*/libclang*.so*)
libclang_found=
for file in "${libclang[@]}"; do [[ $file == *libclang-cpp* || ! -e $file ]] || libclang_found=yes; done
[ -n "$libclang_found" ] || missing+=(clang libclang-dev)
have cc || missing+=(build-essential)
[ "$mode" = runtime ] || have musl-gcc || missing+=(musl-tools) # the loader's line for another C library
if ! have "$server"; then
    [ "$server" = redis-server ] || fail "SERVER=$server was not found"
    missing+=(redis-server)
elif [ -n "$testing" ] && ! have redis-server; then
    missing+=(redis-server)
fi
have redis-cli || missing+=(redis-tools)
if [ -n "$testing" ] && ! have postgres && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
    missing+=(postgresql)
fi
if [ "$mode" = compat ]; then
    have mariadbd || missing+=(mariadb-server)
    have npm || missing+=(nodejs npm)
fi
if [ "$mode" = counts ]; then
    have callgrind_control || missing+=(valgrind)
fi
if [ "$mode" = package ]; then
    have mmdebstrap || missing+=(mmdebstrap)
    have systemd-nspawn || missing+=(systemd-container)
fi
if [ "$mode" = docs ]; then
    have chromium || have chromium-browser || have google-chrome || missing+=(chromium)
fi
[ -e /usr/bin/python3 ] || scripts/python.sh >/dev/null 2>&1 || missing+=(python3 python3-dev python3-venv)

if python=$(scripts/python.sh 2>/dev/null) && [[ $python == /usr/bin/python3* ]]; then
    name=python$(basename "$(scripts/python.sh venv)")
    python_has headers && python_has library || missing+=("$name-dev")
    python_has venv || missing+=("$name-venv")
fi
[ "${#missing[@]}" -eq 0 ] || apt_install "${missing[@]}"

# --- Python ----------------------------------------------------------------------------------------------------------
python=$(scripts/python.sh)
venv=$(scripts/python.sh venv)
version=$(basename "$venv")
python_has headers || fail "$python ($version) has no C headers: install them, or choose another with PYTHON=/path/to/python3"
python_has library || fail "$python ($version) has no shared libpython: rebuild it with --enable-shared, or choose another with PYTHON=/path/to/python3"
python_has venv || fail "$python ($version) has no venv module: install it, or choose another with PYTHON=/path/to/python3"

# `python3` may be a shim of a tool like pyenv: what was taken in its place is said before anything is made with it.
[ "${PYTHON:-/usr/bin/python3}" = "$python" ] || say "PYTHON=${PYTHON:-} is Python $version, $python"

# A stamp holds the content of what it was made from; when that changes, the step is done again.
# (Work trees may share an environment by a link: each names it by another path.)
base="$("$python" -E -c 'import sys; print(sys.version)') $python $(realpath -m "$venv")"
if [ "$(cat "$venv/.stamp-base" 2>/dev/null)" != "$base" ]; then
    say "creating ${venv#"$PWD"/} with $python"
    "$python" -E -m venv --clear "$venv" || fail "could not create $venv with $python"
    printf '%s\n' "$base" >"$venv/.stamp-base"
fi
files=(requirements.txt)
[ "$mode" = runtime ] || files+=(requirements-demo.txt)
[ -z "$testing" ] || files+=(requirements-test.txt)
[ "$mode" != docs ] || files+=(requirements-docs.txt)
[ "$mode" != bench ] || files+=(requirements-bench.txt)
for file in "${files[@]}"; do
    stamp="$venv/.stamp-$file"
    if ! cmp -s "$file" "$stamp"; then
        say "installing $file into ${venv#"$PWD"/}"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file" || fail "pip could not install $file"
        cp "$file" "$stamp"
    fi
done
