# Sourced by build.sh for what is shipped: names in the place of folders of this machine, for Rust and for C. Needs `target`.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
maps=("$PWD=/pinion" "$target=/target" "$cargo_home/registry/src=/crates" "$cargo_home=/cargo" "$(rustc --print sysroot)=/rust" "$HOME=/home")
flags=() c_flags=
for map in "${maps[@]}"; do
    flags+=("--remap-path-prefix=$map")
    c_flags+=" -ffile-prefix-map=$map"
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS CFLAGS="${CFLAGS:-}$c_flags"
