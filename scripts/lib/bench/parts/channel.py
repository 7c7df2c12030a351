"""What is measured through a channel: the host end is the program `bench` of crate qemu-tests."""

import contextlib
import json
import stat
from pathlib import Path

from ..artifacts import run
from ..figures import NotMeasured


class Pair:
    """Two machines that differ only in their initramfs: tether's, and the C agent's."""

    def __init__(self, artifacts):
        self.artifacts = artifacts

    def measure(self, what, *options, channel="virtio", pairs=1, disk=True, qemu=None, arguments=()):
        """Samples by whose they are, `ours` and `theirs` at least, as the program prints them."""
        artifacts = self.artifacts
        command = [artifacts.program("qemu-tests", "bin", "bench")]
        command += ["--state", artifacts.scratch / "machines"]
        command += ["--kernel", artifacts.boot_image() / "bzImage"]
        command += ["--ours", artifacts.boot_image() / "initramfs.cpio"]
        command += ["--theirs", artifacts.initramfs("agent")]
        command += ["--channel", channel, "--pairs", pairs]
        if disk:
            command += ["--disk", artifacts.root_disk()]
        command += arguments
        if qemu:
            command += ["--qemu", qemu]
        measured = False
        try:
            samples = json.loads(run([*command, what, *options], f"measuring {what}", env=PLAIN))
            measured = True
        finally:
            if not measured:
                with contextlib.suppress(NotMeasured):
                    run([*command, "clean"], "cleaning up", env=PLAIN)
        if len({len(side) for side in samples.values()}) != 1:
            raise NotMeasured(f"measuring {what} gave unequal samples")
        return samples

    def counting_qemu(self, count: Path) -> Path:
        """A QEMU that counts the guest's instructions into a file."""
        wrapper = self.artifacts.scratch / "qemu-counting"
        wrapper.write_text(
            "#!/bin/sh\n"
            f'exec qemu-system-x86_64 -plugin "{self.artifacts.counter()},into={count}" "$@"\n'
        )
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        return wrapper


# Errors are one line in the table.
PLAIN = {"RUST_BACKTRACE": "0", "RUST_LIB_BACKTRACE": "0"}
