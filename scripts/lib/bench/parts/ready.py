"""How long a machine takes until tether answers, beside a trivial agent on the same kernel."""

from ..figures import Figure, NotMeasured
from .channel import Pair

SUBJECT = "power on to tether's first answer, in time and in guest instructions"
THEIRS = "C agent, one byte answered"
GOALS = {"goal": 1.05, "hoped": 1.02}


def measurements(artifacts, plan):
    def wall():
        measured = Pair(artifacts).measure("ready", pairs=plan.pairs(20) + 1, disk=False)
        yield Figure(
            "ready",
            "power on to tether ready, time",
            "seconds",
            # The first of each reads its files from the disk.
            [one["seconds"] for one in measured["ours"][1:]],
            [one["seconds"] for one in measured["theirs"][1:]],
            THEIRS,
            note="both through the QEMU driver and a virtio-serial port; ready: the hello is answered",
            **GOALS,
        )

    def instructions():
        pair = Pair(artifacts)
        count = artifacts.scratch / "count"
        count.write_bytes(bytes(8))
        measured = pair.measure(
            "ready", "--count", count, pairs=plan.pairs(5), disk=False, qemu=pair.counting_qemu(count)
        )
        samples = [[one["instructions"] for one in side] for side in (measured["ours"], measured["theirs"])]
        if not all(map(all, samples)):
            raise NotMeasured("QEMU's plugin counted nothing")
        yield Figure(
            "ready", "power on to tether ready, instructions", "instructions", *samples, THEIRS, **GOALS
        )

    yield ["power on to tether ready, time"], wall
    yield ["power on to tether ready, instructions"], instructions
