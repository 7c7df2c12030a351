"""Forks from a template, beside boots of the same machine and beside forks of a trivial one."""

import shutil
import tempfile

from ..figures import Figure, NotMeasured, quantile
from .channel import Pair

SUBJECT = "fork to tether's answer and to a process's first byte, and the memory of a fork"
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

    def forks():
        try:
            templates = tempfile.mkdtemp(prefix="tether-bench.", dir="/dev/shm")
        except OSError as why:
            raise NotMeasured(f"no place for templates: {why}") from why
        try:
            samples = Pair(artifacts).measure(
                "fork", pairs=plan.pairs(20), arguments=["--templates", templates]
            )
        finally:
            shutil.rmtree(templates, ignore_errors=True)

        def tail(values):
            return "p50 %.0f ms, p99 %.0f ms" % tuple(quantile(values, at) * 1e3 for at in (0.5, 0.99))

        def figure(name, unit, ours, theirs, of, **more):
            return Figure("fork", name, unit, samples[ours], samples[theirs], of, **more)

        def beside_boot(name, what, **more):
            return figure(name, "seconds", f"fork_{what}", f"boot_{what}", BOOT, **more)

        def unshared(name, when, **more):
            marks = {"judged": "ours", "goal": 1 << 20, "hoped": 384 << 10}
            return figure(name, "bytes", f"fork_unshared_{when}", "theirs_unshared", TRIVIAL, **marks, **more)

        return [
            beside_boot(names[0], "ready", goal=1 / 15, note=tail(samples["fork_ready"])),
            beside_boot(names[1], "ready_cpu", note="of QEMU; the same whatever else the host does"),
            beside_boot(names[2], "first_byte", note=tail(samples["fork_first_byte"])),
            beside_boot(names[3], "first_byte_cpu"),
            figure(names[4], "seconds", "fork_ready", "theirs_ready", TRIVIAL, goal=1.2),
            unshared(names[5], "at_ready"),
            unshared(names[6], "after", note="after root, setup and one process"),
            figure(names[7], "bytes", "fork_own", "boot_own", BOOT),
            figure(names[8], "seconds", "spare_ready", "boot_ready", BOOT, goal=1 / 15, note=tail(samples["spare_ready"])),
            figure(names[9], "seconds", "spare_first_byte", "boot_first_byte", BOOT, note=tail(samples["spare_first_byte"])),
            figure(names[10], "seconds", "spare_ready", "theirs_ready", TRIVIAL, goal=1.2),
        ]

    yield names, forks
