#!/usr/bin/env bash
# Makes a .deb of the loader and the build for the system's Python: packaging/debian/build.sh FILES DIST
# Servers of Debian load the module by a drop-in of systemd.
set -euo pipefail
files=$1 dist=$2
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../package/pyproject.toml" | head -n 1)
arch=$(dpkg --print-architecture)
python=$(/usr/bin/python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# The youngest symbol that the files need of the C library.
glibc=$(objdump -T "$files"/*.so | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1 | cut -d_ -f2)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

install -D -m 755 -t "$root/usr/lib/pinion" "$files/libpinion.so" "$files"/pinion-cp*.so
for server in redis valkey; do
    install -d -m 755 "$root/lib/systemd/system/$server-server.service.d"
    sed "s/@SERVER@/$server/g" "$here/drop-in.conf" >"$root/lib/systemd/system/$server-server.service.d/pinion.conf"
done
install -D -m 644 "$here/default" "$root/etc/default/pinion"
install -D -m 644 "$here/../../LICENSE" "$root/usr/share/doc/pinion-redis/copyright"
install -d -m 755 "$root/DEBIAN"
install -m 755 -t "$root/DEBIAN" "$here/postinst" "$here/postrm"
echo /etc/default/pinion >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<TEXT
Package: pinion-redis
Version: $version
Architecture: $arch
Maintainer: The Pinion maintainers <pinion@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: libc6 (>= $glibc), libgcc-s1, python$python, libpython$python
Recommends: redis-server (>= 5:6.2) | valkey-server, python3-pip, python3-redis, python$python-venv
Section: database
Priority: optional
Description: Python functions inside Redis and Valkey
 A module for redis-server and valkey-server that runs Python functions in
 the server: read-through caches, reactions to key events, jobs over the
 keyspace. Compatible with scripts of RedisGears 1.2.
TEXT
file=$dist/pinion-redis_${version}_$arch.deb
dpkg-deb --root-owner-group --build "$root" "$file" >/dev/null
echo "pinion: $(cd "$dist" && ls -sh "$(basename "$file")")"
