"""A VCH whose templates are a directory's of its own, and forks of what runs in it."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...figures import NotMeasured
from ..docker import DEADLINE, Docker, serving


@contextlib.contextmanager
def templates():
    """A directory on a tmpfs, removed in the end."""
    try:
        directory = tempfile.mkdtemp(prefix="tether-bench.", dir="/dev/shm")
    except OSError as why:
        raise NotMeasured(f"no place for templates: {why}") from why
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def vch(artifacts, *flags):
    """What serves containers, with nothing started ahead of need; its templates' directory."""
    with templates() as directory, serving(artifacts, "--spares", "0", "--templates", directory, *flags) as docker:
        yield docker, directory


def fork(artifacts, docker: Docker, container: str, count: int = 1) -> list:
    """`vch fork`: the children's ids."""
    result = subprocess.run(
        [artifacts.program("vch", "bin", "vch"), "fork", container, "--count", str(count)],
        env={"DOCKER_HOST": f"unix://{docker.socket}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    if result.returncode != 0:
        raise NotMeasured(f"vch fork exited with {result.returncode}: {result.stderr.strip()[-300:]}")
    return result.stdout.split()


def machines(docker: Docker):
    """The directories in /proc of the QEMUs of a VCH."""
    home = os.path.realpath(docker.socket.parent)
    for process in Path("/proc").iterdir():
        try:
            if not os.readlink(process / "cwd").startswith(f"{home}/"):
                continue
            if os.path.basename(os.readlink(process / "exe")).startswith("qemu-system"):
                yield process
        except OSError:
            # Not a process, not ours, or ended meanwhile.
            continue
