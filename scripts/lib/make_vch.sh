# shellcheck shell=bash
# Installs and builds what scripts/vch needs, and prints two lines: the program, and the directory of
# the boot image. Run, not sourced.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
# shellcheck source=scripts/lib/machine.sh
. "$here/scripts/lib/machine.sh"
cd "$here"

# build_vch RESULT
build_vch() {
    local target
    target=$(cache_dir)/cargo
    mkdir -p "$target"
    # Another checkout may build into the same directory: what cargo made there is ours until it is
    # copied.
    exec 7>"$target/.vch.lock"
    flock 7
    step "building vch"
    CARGO_TARGET_DIR=$target cargo build --quiet --locked --release -p vch
    cp "$target/release/vch" "$1/vch"
}

need_packages qemu-system-x86 ovmf
need_rust
boot_image=${VCH_BOOT_IMAGE:-}
[ -n "$boot_image" ] || boot_image=$(scripts/boot-image)

mapfile -d '' files < <(
    find hostside tether/wire Cargo.toml Cargo.lock rust-toolchain.toml \
        \( -name target -o -name fuzz -o -name tests \) -prune -o -type f -print0 | LC_ALL=C sort -z
)
hash=$({
    input_hash "${files[@]}"
    rustc --version --verbose
} | sha256sum | cut -c1-16)
program=$(cached vch "$hash" build_vch)/vch
printf '%s\n' "$program" "$boot_image"
