"""`vch run` from the command line to the shell's next prompt."""

import os
import subprocess
import time

from ..artifacts import run as checked
from ..figures import Figure, NotMeasured, quantile
from ..guest import boot
from .channel import PLAIN

SUBJECT = "vch run --rm sample/busybox true, end to end"
IMAGE = "bench/busybox"


def measurements(artifacts, plan):
    def end_to_end():
        vch, state = artifacts.program("vch", "bin", "vch"), artifacts.scratch / "vch"
        environment = {**PLAIN, "VCH_STATE": str(state), "VCH_BOOT_IMAGE": str(artifacts.boot_image())}
        source = f"oci:{artifacts.sample('busybox')}"
        checked([vch, "image", "import", source, "--tag", IMAGE], "vch image import", env=environment)
        ours, theirs = [], []
        try:
            for number in range(plan.pairs(50) + 1):
                one = timed_run(vch, environment)
                other = boot(artifacts.kernel(), artifacts.initramfs("init"), off=True).off
                # The first of each reads its files from the disk.
                if number > 0:
                    ours.append(one)
                    theirs.append(other)
        finally:
            left = checked([vch, "ls", "--quiet"], "vch ls", env=environment).split()
            if left:
                checked([vch, "rm", "--force", *left], "vch rm", env=environment)
        baseline = "QEMU, same kernel, C init that powers off"
        yield Figure("run", "vch run --rm busybox true", "seconds", ours, theirs, baseline)
        yield Figure(
            "run",
            "vch run --rm busybox true, 99th percentile",
            "seconds",
            [quantile(ours, 0.99)],
            [quantile(theirs, 0.99)],
            baseline,
            note=f"of {len(ours)} each",
        )

    yield ["vch run --rm busybox true", "vch run --rm busybox true, 99th percentile"], end_to_end


def timed_run(vch, environment) -> float:
    started = time.monotonic()
    result = subprocess.run(
        [vch, "run", "--rm", IMAGE, "true"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    took = time.monotonic() - started
    if result.returncode != 0:
        raise NotMeasured(f"vch run exited with {result.returncode}: {result.stderr.strip()[-300:]}")
    return took
