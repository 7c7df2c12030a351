"""What is measured, and what it is measured against: built, downloaded or found, each once.

Whatever cannot be had raises `NotMeasured` with the reason, at the first figure that needs it and at
every later one.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import wraps
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

from .figures import NotMeasured

MUSL = "x86_64-unknown-linux-musl"


def once(method):
    """Remembers a method's result, or the reason there is none, by its arguments."""

    @wraps(method)
    def remembered(self, *args):
        key = (method.__name__, args)
        if key not in self._had:
            try:
                self._had[key] = method(self, *args)
            except NotMeasured as why:
                self._had[key] = why
        had = self._had[key]
        if isinstance(had, NotMeasured):
            raise had
        return had

    return remembered


def run(command: Sequence, what: str, cwd: Optional[Path] = None, env: Optional[Dict[str, str]] = None) -> str:
    """Runs a command for its standard output; its progress goes where ours goes, and is kept for the
    reason should it fail."""
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise NotMeasured(f"{what}: {error}") from error
    out, errors = process.communicate()
    for line in errors.splitlines():
        if line.startswith("==> "):
            print(line, file=sys.stderr)
    if process.returncode != 0:
        said = [line for line in errors.strip().splitlines() if line.strip()]
        telling = next((line for line in said if re.match(r"error|.*: error", line)), said[-1] if said else "")
        raise NotMeasured(f"{what} failed ({process.returncode}): {telling.strip()[:200]}")
    return out


class Artifacts:
    """Everything the parts ask for. `root` is the source tree, `scratch` a directory that goes away."""

    def __init__(self, root: Path, scratch: Path):
        self.root = root
        self.scratch = scratch
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".cache")
        self.cache = Path(os.environ.get("TETHER_CACHE") or os.path.join(home, "tether")).resolve()
        self.baselines = root / "scripts" / "bench-baselines"
        self._had: dict = {}

    # Ours.

    @once
    def kernel(self) -> Path:
        """Our bzImage."""
        return Path(run([self.root / "scripts/kernel"], "scripts/kernel").strip()) / "bzImage"

    @once
    def boot_image(self) -> Path:
        """The directory with bzImage, initramfs.cpio and tether.iso."""
        return Path(run([self.root / "scripts/boot-image"], "scripts/boot-image").strip())

    @once
    def tether(self) -> bytes:
        """The program in the boot image."""
        return init_of((self.boot_image() / "initramfs.cpio").read_bytes())

    @once
    def sample(self, name: str) -> Path:
        """A sample image: an OCI layout directory."""
        return Path(run([self.root / "scripts/sample-image", name], f"scripts/sample-image {name}").strip())

    @once
    def program(self, package: str, kind: str, name: str) -> Path:
        """A release build of one of the workspace's binaries or examples; `kind` is `bin` or `example`."""
        manifest = run(
            ["cargo", "build", "--release", "--locked", "--message-format=json", "-p", package, f"--{kind}", name],
            f"building {name} of {package}",
            cwd=self.root,
            env={"CARGO_TARGET_DIR": str(self.cache / "cargo")},
        )
        for line in manifest.splitlines():
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] == name:
                # Another checkout may build into the same directory while we measure.
                return Path(shutil.copy(message["executable"], self.scratch / f"{kind}-{name}"))
        raise NotMeasured(f"cargo built no program {name} in {package}")

    # Theirs.

    @once
    def baseline(self, name: str) -> Path:
        """A static program from scripts/bench-baselines."""
        source, program = self.baselines / f"{name}.c", self.scratch / name
        run(
            ["musl-gcc", "-Os", "-static", "-s", "-Wl,--gc-sections", "-o", program, source],
            f"compiling {source.name}",
        )
        return program

    @once
    def initramfs(self, name: str) -> Path:
        """The initramfs whose only file is that program."""
        archive = self.scratch / f"{name}.cpio"
        archive.write_bytes(newc({"init": self.baseline(name).read_bytes()}))
        return archive

    @once
    def counter(self) -> Path:
        """The QEMU plugin that counts the guest's instructions."""
        plugin = self.scratch / "instructions.so"
        source = self.baselines / "instructions.c"
        run(["gcc", "-O2", "-fPIC", "-shared", "-o", plugin, source], f"compiling {source.name}")
        return plugin

    @once
    def debian_kernel(self) -> Path:
        """The newest vmlinuz of Debian's cloud kernel, downloaded and unpacked, never installed."""
        meta = "linux-image-cloud-amd64"
        depends = run(["apt-cache", "depends", meta], f"apt-cache depends {meta}")
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise NotMeasured(f"apt knows no package {meta}: it is Debian's, from `apt-get update` on")
        policy = run(["apt-cache", "policy", package[1]], f"apt-cache policy {package[1]}")
        version = re.search(r"Candidate: (\S+)", policy)[1]

        def make(directory: Path) -> None:
            run(
                ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package[1]],
                f"apt-get download {package[1]}",
                cwd=directory,
            )
            (archive,) = directory.glob("*.deb")
            run(["dpkg-deb", "-x", archive, directory / "root"], f"unpacking {archive.name}")
            (kernel,) = (directory / "root/boot").glob("vmlinuz-*")
            kernel.rename(directory / "vmlinuz")
            shutil.rmtree(directory / "root")
            archive.unlink()

        name = f"{package[1]}_{version}".replace(":", "_")
        return self.cached("bench", name, make) / "vmlinuz"

    @once
    def debian_iso(self) -> Path:
        """Our boot image's ISO with Debian's cloud kernel in it."""
        made = run(
            [self.root / "scripts/boot-image"],
            "scripts/boot-image with Debian's kernel",
            env={"KERNEL": str(self.debian_kernel())},
        )
        return Path(made.strip()) / "tether.iso"

    @once
    def rust_hello(self) -> Path:
        """A Rust hello, built as tether is: same toolchain, target and profile, remapped paths."""
        manifest = (self.root / "Cargo.toml").read_text()
        sections = re.split(r"(?m)^(?=\[)", manifest)
        profiles = "".join(s for s in sections if s.startswith(("[profile.guest]", "[profile.release]")))
        if "[profile.guest]" not in profiles:
            raise NotMeasured("Cargo.toml has no [profile.guest]")
        rustc = run(["rustc", "--version", "--verbose"], "rustc --version", cwd=self.root)
        project = (
            '[package]\nname = "hello"\nversion = "0.0.0"\nedition = "2024"\npublish = false\n\n[workspace]\n\n'
            + profiles
        )
        source = 'fn main() {\n    println!("hello");\n}\n'
        separator = "\x1f"
        cargo_home = os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")

        def make(directory: Path) -> None:
            (directory / "src").mkdir()
            (directory / "Cargo.toml").write_text(project)
            (directory / "src/main.rs").write_text(source)
            flags = [f"--remap-path-prefix={cargo_home}=cargo", f"--remap-path-prefix={directory}=tether"]
            run(
                ["cargo", "build", "--quiet", "--profile", "guest", "--target", MUSL]
                + ["--manifest-path", directory / "Cargo.toml"],
                "building a Rust hello",
                cwd=self.root,
                env={
                    "CARGO_TARGET_DIR": str(directory / "target"),
                    "CARGO_ENCODED_RUSTFLAGS": separator.join(flags),
                },
            )
            shutil.copy(directory / f"target/{MUSL}/guest/hello", directory / "hello")
            shutil.rmtree(directory / "target")

        digest = hashlib.sha256((rustc + project + source).encode()).hexdigest()[:16]
        return self.cached("bench", f"hello-{digest}", make) / "hello"

    @once
    def root_disk(self) -> Path:
        """An ext4 image of the busybox sample, with `writer` added as /bin/writer."""
        tree, disk = self.scratch / "root", self.scratch / "root.ext4"
        extract(self.sample("busybox"), tree)
        shutil.copy(self.baseline("writer"), tree / "bin/writer")
        run(["mkfs.ext4", "-q", "-F", "-d", tree, disk, "64M"], "mkfs.ext4 -d")
        return disk

    # Where what takes long is kept.

    def cached(self, kind: str, name: str, make: Callable[[Path], None]) -> Path:
        """KIND/NAME in the cache: whole or absent, made by one at a time (as `cached` in machine.sh)."""
        parent = self.cache / kind
        entry, temporary = parent / name, parent / f".{name}.new"
        parent.mkdir(parents=True, exist_ok=True)
        if entry.is_dir():
            return entry
        with open(parent / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not entry.is_dir():
                print(f"==> preparing {name}", file=sys.stderr)
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                make(temporary)
                temporary.rename(entry)
        return entry


def layers(layout: Path) -> list:
    """The layers' files of an OCI layout's one image, lowest first."""

    def blob(descriptor) -> Path:
        algorithm, digest = descriptor["digest"].split(":")
        return layout / "blobs" / algorithm / digest

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]).read_text())
    return [blob(layer) for layer in manifest["layers"]]


def extract(layout: Path, directory: Path) -> None:
    """Unpacks an image without whiteouts, as the samples are, as whoever runs this."""
    directory.mkdir()
    for layer in layers(layout):
        with tarfile.open(layer) as archive:
            archive.extractall(directory)


def newc(files: Dict[str, bytes]) -> bytes:
    """A newc archive (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    for inode, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        mode = 0o100755 if data else 0
        encoded = name.encode() + b"\0"
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def init_of(archive: bytes) -> bytes:
    """The file `init` of a newc archive."""
    at = 0
    while archive[at : at + 6] == b"070701":
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 109 + name_size].decode()
        data = (at + 110 + name_size + 3) & ~3
        if name.lstrip("./") == "init":
            return archive[data : data + size]
        at = (data + size + 3) & ~3
    raise NotMeasured("the initramfs holds no /init")
