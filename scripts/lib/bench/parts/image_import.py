"""How fast an image becomes a disk, beside `tar x` of its layers and `mkfs.ext4 -d`."""

import os
import shutil
import subprocess
import time

from ..artifacts import layers
from ..figures import Figure, NotMeasured

SUBJECT = "import of an OCI image into a disk"


def measurements(artifacts, plan):
    def debian():
        if os.geteuid() != 0:
            raise NotMeasured("the baseline, `tar x` with owners and devices, needs root")
        layout = artifacts.sample("debian")
        program = artifacts.program("image", "example", "import")
        ours, theirs = [], []
        # The first pair reads the layers from the disk.
        for number in range(plan.pairs(7) + 1):
            pair = timed_import(artifacts, program, layout), timed_baseline(artifacts, layout)
            if number > 0:
                ours.append(pair[0])
                theirs.append(pair[1])
        yield Figure(
            "image",
            "import of sample/debian",
            "seconds",
            ours,
            theirs,
            "tar x + mkfs.ext4 -d",
            goal=0.5,
            note="import: oci: layout to ext4 in VMDK in the store, synced to disk; baseline: tar as root into a "
            "directory, mkfs.ext4 -d into a raw file, sync of that file; both into the same filesystem",
        )

    yield ["import of sample/debian"], debian


def timed_import(artifacts, program, layout) -> float:
    store = artifacts.scratch / "store"
    started = time.monotonic()
    result = subprocess.run(
        [program, store, f"oci:{layout}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    took = time.monotonic() - started
    if result.returncode != 0:
        raise NotMeasured(f"the import failed: {result.stderr.strip()[:300]}")
    shutil.rmtree(store)
    return took


def timed_baseline(artifacts, layout) -> float:
    tree, disk = artifacts.scratch / "tree", artifacts.scratch / "tree.ext4"
    started = time.monotonic()
    tree.mkdir()
    for layer in layers(layout):
        subprocess.run(["tar", "-xpf", layer, "--xattrs", "--numeric-owner", "-C", tree], check=True)
    # As large as asked for, twice over: mkfs writes only what is used.
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", tree, disk, "1G"], check=True, stdout=subprocess.DEVNULL)
    with open(disk, "rb") as file:
        os.fsync(file.fileno())
    took = time.monotonic() - started
    shutil.rmtree(tree)
    disk.unlink()
    return took
