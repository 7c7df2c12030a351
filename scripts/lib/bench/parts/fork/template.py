"""Forks from a template, beside boots of the same machine and beside forks of a trivial one."""

from ...figures import Figure, quantile
from ..channel import Pair
from .place import templates

BOOT = "the same machine booted"
TRIVIAL = "QEMU restored with a C agent, one byte answered"


def measurements(artifacts, plan):
    names = [
        "fork to tether ready, time",
        "fork to tether ready, processor time",
        "fork to a process's first byte, time",
        "fork to a process's first byte, processor time",
        "the same to tether ready, beside a trivial restore",
        "guest memory unshared at ready",
        "guest memory unshared after a process",
        "memory of a fork's own, QEMU's and the guest's",
        "fork started ahead to tether ready, time",
        "fork started ahead to a process's first byte, time",
        "the same to tether ready, beside a trivial restore, ahead",
    ]
    # Of each a 99th percentile as well, by what it is of in the samples.
    tails = {names[0]: "fork_ready", names[2]: "fork_first_byte", names[8]: "spare_ready", names[9]: "spare_first_byte"}

    def tail_name(name):
        return f"{name}, 99th percentile"

    def forks():
        with templates() as directory:
            samples = Pair(artifacts).measure("fork", pairs=plan.pairs(50), arguments=["--templates", directory])

        def figure(name, unit, ours, theirs, of, **more):
            return Figure("fork", name, unit, samples[ours], samples[theirs], of, **more)

        def beside_boot(name, what, **more):
            return figure(name, "seconds", f"fork_{what}", f"boot_{what}", BOOT, **more)

        def tail(name, ours):
            theirs = f"boot_{ours.partition('_')[2]}"
            percentiles = ([quantile(samples[whose], 0.99)] for whose in (ours, theirs))
            return Figure("fork", tail_name(name), "seconds", *percentiles, BOOT, note=f"of {len(samples[ours])} each")

        def unshared(name, when, **more):
            marks = {"judged": "ours", "goal": 1 << 20, "hoped": 384 << 10}
            return figure(name, "bytes", f"fork_unshared_{when}", "theirs_unshared", TRIVIAL, **marks, **more)

        return [
            beside_boot(names[0], "ready", goal=1 / 15),
            beside_boot(names[1], "ready_cpu", note="of QEMU; the same whatever else the host does"),
            beside_boot(names[2], "first_byte"),
            beside_boot(names[3], "first_byte_cpu"),
            figure(names[4], "seconds", "fork_ready", "theirs_ready", TRIVIAL, goal=1.2),
            unshared(names[5], "at_ready"),
            unshared(names[6], "after", note="after root, setup and one process"),
            figure(names[7], "bytes", "fork_own", "boot_own", BOOT),
            figure(names[8], "seconds", "spare_ready", "boot_ready", BOOT, goal=1 / 15),
            figure(names[9], "seconds", "spare_first_byte", "boot_first_byte", BOOT),
            figure(names[10], "seconds", "spare_ready", "theirs_ready", TRIVIAL, goal=1.2),
            *(tail(name, ours) for name, ours in tails.items()),
        ]

    yield [*names, *map(tail_name, tails)], forks
