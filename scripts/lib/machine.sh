# shellcheck shell=bash
# What every script here needs of the machine it runs on: packages, a Rust toolchain, the cache of
# built artifacts. Sourced, never run. Turns on strict mode for the script that sources it.
#
#   need_packages PKG...        install the Debian packages that are missing
#   need_rust                   cargo, with the target tether is built for
#   need_efi_target             the target of the boot image's EFI loader
#   cache_dir                   print the directory of built artifacts
#   input_hash FILE...          print one hash over the names and contents of files
#   cached KIND NAME CMD...     print KIND/NAME in the cache, made by `CMD... DIR` if missing
#   step MESSAGE                say what is being done, on stderr
#   die MESSAGE                 say why nothing more is done, and stop

set -euo pipefail
shopt -s inherit_errexit

step() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "need root to run: $*. Run it yourself as root, then try again."
    fi
}

package_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# The version apt would install, empty when it knows none.
package_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

need_packages() {
    local package missing=()
    for package; do
        package_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "needs Debian or Ubuntu to install: ${missing[*]}. Install what they hold, by hand."

    step "installing ${missing[*]}"
    for package in "${missing[@]}"; do
        if [ -z "$(package_candidate "$package")" ]; then
            as_root apt-get update -qq >&2 || die "apt-get update failed: is the package mirror reachable?"
            break
        fi
    done

    # Debian's qemu-system-x86 refuses a qemu-utils of another version, and machines with packages
    # from a newer suite have one: ask for both at the version that can be had.
    local wanted=() version
    for package in "${missing[@]}"; do
        wanted+=("$package")
        if [ "$package" = qemu-system-x86 ] && package_installed qemu-utils; then
            version=$(package_candidate qemu-system-x86)
            wanted+=("qemu-utils=$version")
        fi
    done
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
        --allow-downgrades "${wanted[@]}")
    # A stale package list names versions the mirror no longer has.
    as_root "${apt[@]}" >&2 || {
        as_root apt-get update -qq >&2 && as_root "${apt[@]}" >&2
    } || die "could not install: ${wanted[*]}"
}

# Where the installer of the Rust toolchain comes from, when Debian has none new enough.
: "${RUSTUP_INIT:=https://sh.rustup.rs}"

need_rust() {
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    export PATH
    local target=x86_64-unknown-linux-musl
    if ! command -v cargo >/dev/null; then
        if [ -n "$(package_candidate rustup)" ]; then
            need_packages rustup
            # Without a default toolchain rustup's `cargo` still works wherever rust-toolchain.toml is.
        else
            need_packages curl ca-certificates
            step "installing the Rust toolchain"
            curl --proto '=https' --tlsv1.2 -fsS "$RUSTUP_INIT" |
                sh -s -- -y -q --profile minimal --default-toolchain none --no-modify-path >&2 ||
                die "could not install Rust. Install rustup, then try again."
        fi
    fi
    need_packages build-essential musl-tools
    if command -v rustup >/dev/null; then
        # Old rustups install a missing toolchain or target by themselves, newer ones only when asked.
        if ! rustup target list --installed 2>/dev/null | grep -qx "$target"; then
            step "installing the Rust target $target"
            { rustup toolchain install >&2 || rustup show >&2; } &&
                rustup target add "$target" >&2 ||
                die "could not install the Rust target $target"
        fi
    elif [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
        die "cargo has no target $target: install it, or install rustup"
    fi
}

cache_dir() {
    local dir=${TETHER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tether}
    mkdir -p "$dir"
    (cd "$dir" && pwd -P)
}

input_hash() {
    local file
    for file; do
        [ -r "$file" ] || die "input_hash: cannot read $file"
        printf '%s %s\n' "${file##*/}" "$(sha256sum <"$file")"
    done | sha256sum | cut -c1-16
}

# cached KIND NAME CMD [ARG...]: prints the path of KIND/NAME in the cache. If it does not exist, runs
# `CMD ARG... DIR` with DIR an empty directory beside it and renames DIR into place: an entry is whole
# or absent, whatever was killed when. One builder at a time per entry; the others wait for it.
cached() {
    local kind=$1 name=$2 parent entry temporary
    shift 2
    parent=$(cache_dir)/$kind
    entry=$parent/$name
    temporary=$parent/.$name.new
    mkdir -p "$parent"
    if [ ! -d "$entry" ]; then
        (
            flock 9
            [ ! -d "$entry" ] || exit 0
            rm -rf "$temporary"
            mkdir "$temporary"
            "$@" "$temporary" >&2 9>&-
            mv -T "$temporary" "$entry"
        ) 9>"$parent/.$name.lock"
    fi
    printf '%s\n' "$entry"
}

# The target of the boot image's EFI loader.
need_efi_target() {
    local target=x86_64-unknown-none
    [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || return 0
    step "installing the Rust target $target"
    command -v rustup >/dev/null || die "the Rust toolchain has no target $target: install it, or install rustup"
    rustup target add "$target" >&2 || die "could not install the Rust target $target"
}
