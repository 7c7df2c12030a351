"""How long the kernel takes to PID 1, beside Debian's cloud kernel with the same trivial init."""

from ..figures import Figure
from ..guest import Counter, boot

SUBJECT = "kernel start to init, in time and in guest instructions"


def measurements(artifacts, plan):
    theirs_name = "Debian's cloud kernel, same init"

    def wall():
        ours, theirs = [], []
        initramfs = artifacts.initramfs("init")
        # The first boot of each reads its files from the disk.
        for number in range(plan.pairs(10) + 1):
            pair = [boot(kernel, initramfs) for kernel in (artifacts.kernel(), artifacts.debian_kernel())]
            if number > 0:
                ours.append(pair[0])
                theirs.append(pair[1])
        yield Figure(
            "kernel",
            "kernel start to init, time",
            "seconds",
            [one.kernel for one in ours],
            [one.kernel for one in theirs],
            theirs_name,
            goal=0.5,
            hoped=0.3,
            note="kernel start: when the firmware hands over; init: its first byte on the serial console",
        )
        yield Figure(
            "kernel",
            "QEMU start to init, time",
            "seconds",
            [one.spoke for one in ours],
            [one.spoke for one in theirs],
            theirs_name,
        )

    def instructions():
        ours, theirs = [], []
        for _ in range(plan.pairs(3)):
            for kernel, into in ((artifacts.kernel(), ours), (artifacts.debian_kernel(), theirs)):
                counter = Counter(artifacts.counter(), artifacts.scratch / "count")
                into.append(boot(kernel, artifacts.initramfs("init"), counter).instructions)
        yield Figure(
            "kernel",
            "kernel start to init, instructions",
            "instructions",
            ours,
            theirs,
            theirs_name,
            goal=0.5,
            hoped=0.3,
            note="guest instructions executed, counted in QEMU; waiting executes none",
        )

    yield ["kernel start to init, time", "QEMU start to init, time"], wall
    yield ["kernel start to init, instructions"], instructions
