#!/usr/bin/env bash
# Builds what is shipped, into dist/: a wheel for each Python, and a .deb for the system's one.
#   scripts/dist.sh                     all Pythons on this machine from 3.9 on that have a shared libpython
#   scripts/dist.sh /usr/bin/python3    only these
# No path of this machine is in what comes out. Environment: CARGO_TARGET_DIR, DIST (dist), DEB=no (no .deb), SHIPPED=yes (the build in
# CARGO_TARGET_DIR is such a one already, as CI's: nothing is compiled twice).
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
[ "${SHIPPED:-}" = yes ] || target=$target/dist
export SHIPPED=yes
dist=$(realpath -m "${DIST:-dist}")
system=/usr/bin/python3

say() { printf 'pinion: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# True if the Python runs, is 3.9 or newer, no free-threaded build, and has a shared library and its headers.
usable() {
    "$1" -I - 2>/dev/null <<'PY'
import os, sys, sysconfig
v = sysconfig.get_config_var
library = f"libpython{v('VERSION')}.so.1.0"
found = any(os.path.exists(os.path.join(d, library)) for d in (v("LIBDIR"), os.path.join(sys.base_prefix, "lib")) if d)
headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
sys.exit(not (sys.version_info >= (3, 9) and found and headers and not v("Py_GIL_DISABLED")))
PY
}

# The first Python of each version counts.
pythons=("$@")
if [ ${#pythons[@]} -eq 0 ]; then
    declare -A seen=()
    for python in "$system" /usr/bin/python3.* /usr/local/bin/python3.* "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
        [ -x "$python" ] && usable "$python" || continue
        version=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        [ -z "${seen[$version]:-}" ] || continue
        seen[$version]=yes
        pythons+=("$python")
    done
fi
[ ${#pythons[@]} -gt 0 ] || fail "no Python 3.9 or newer with a shared libpython and headers was found"

# The tools have an environment of their own.
tools=$target/tools
if ! cmp -s requirements-dist.txt "$tools/.stamp"; then
    say "installing requirements-dist.txt into $tools"
    python3=$(scripts/python.sh)
    "$python3" -E -m venv --clear "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dist.txt
    cp requirements-dist.txt "$tools/.stamp"
fi

mkdir -p "$dist"
for python in "${pythons[@]}"; do
    usable "$python" || fail "$python has no shared libpython, no headers, or is older than 3.9"
    tag=$("$python" -I -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    files=$target/files/$tag
    say "building for $python ($tag)"
    rm -rf "$files"
    PYTHON=$python OUT=$files CARGO_TARGET_DIR=$target scripts/build.sh
    strip "$files"/pinion-*.so
    for file in "$files"/*.so; do
        ! strings -a "$file" | grep -F -e "$PWD" -e "$HOME/" -e "$target" -m 3 || fail "$file names folders of this machine"
    done
    rm -rf "$target/wheel"
    PINION_FILES=$files "$tools/bin/python" -m build --wheel --no-isolation --outdir "$target/wheel" package >"$target/wheel.log" 2>&1 ||
        { tail -n 20 "$target/wheel.log" >&2; fail "the wheel could not be built"; }
    wheel=$(echo "$target"/wheel/*.whl)
    rm -f "$dist"/pinion_redis-*-"$tag"-*.whl
    # libpython is what the loader has opened: nothing is copied into the wheel.
    if PATH="$tools/bin:$PATH" "$tools/bin/auditwheel" repair --exclude 'libpython*' --wheel-dir "$dist" "$wheel" >"$target/auditwheel.log" 2>&1; then
        :
    else
        say "auditwheel does not agree, the wheel is for this kind of machine only: $(tail -n 1 "$target/auditwheel.log")"
        cp "$wheel" "$dist/"
    fi
    say "$(cd "$dist" && ls -sh pinion_redis-*-"$tag"-*.whl)"
done

if [ "${DEB:-}" != no ] && command -v dpkg-deb >/dev/null; then
    for python in "${pythons[@]}"; do
        [ "$python" != "$system" ] || packaging/debian/build.sh "$target/files/$("$python" -I -c 'import sys; print("cp%d%d" % sys.version_info[:2])')" "$dist"
    done
fi
