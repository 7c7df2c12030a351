"""What an idle child holds of the host's memory, all told, beside a booted machine; and how many fit.

All told is: the anonymous and file pages of its QEMU and of the controller, each by its share of them
(proc_pid_smaps(5): Pss), the page tables of both, and all pages of the tmpfs files that QEMUs map, be it a
template's or those of a live fork. The page cache of disks is the kernel's to drop, and not counted.
"""

import os
import time
from pathlib import Path

from ...figures import Figure, NotMeasured
from ..docker import IMAGE, Docker
from .place import fork, machines, vch

BOOTED = "as many booted"
HOST = 16 << 30
KINDS = {
    "idle fork of a template": "forked",
    "idle child of a running container": "live",
}
# No machine takes as long to settle, seconds.
SETTLED = 60.0


def measurements(artifacts, plan):
    few, many = (20, 40) if plan.scale == 1 else (8, 16)
    memory = {kind: f"{kind}, host memory all told" for kind in KINDS}
    fit = {kind: f"{kind}, how many fit in 16 GiB" for kind in KINDS}
    controller = "idle fork of a template, of that the controller's"
    base = "template in memory, once for all its forks"

    def held():
        booted = booted_machines(artifacts, few // 2, many // 2)
        costs = {"forked": forks(artifacts, few, many), "live": children(artifacts, few, many)}
        for kind, what in KINDS.items():
            cost = costs[what]
            how = f"what {many} hold more than {few}, by that number; idle, guests of 256 MiB"
            yield Figure("fork", memory[kind], "bytes", [cost.each], [booted.each], BOOTED, note=how)
            yield Figure(
                "fork",
                fit[kind],
                "children",
                [cost.fit()],
                [booted.fit()],
                BOOTED,
                better="more",
                note="computed: 16 GiB without what is there once, by what each one holds",
            )
        cost = costs["forked"]
        yield Figure("fork", controller, "bytes", [cost.controller], [booted.controller], BOOTED)
        yield Figure("fork", base, "bytes", [cost.template], [booted.each], "one booted machine")

    yield [*(name for kind in KINDS for name in (memory[kind], fit[kind])), controller, base], held


class Cost:
    """What each of some machines costs, from what few and many of them hold."""

    def __init__(self, few: int, many: int, with_few: "Held", with_many: "Held"):
        self.each = (with_many.all - with_few.all) / (many - few)
        self.controller = (with_many.controller - with_few.controller) / (many - few)
        self.template = with_many.template
        # What there would be without any.
        self.once = with_few.all - few * self.each
        if self.each <= 0:
            raise NotMeasured(f"{many} machines hold no more than {few}")

    def fit(self) -> float:
        return (HOST - self.once) // self.each


class Held:
    """Host memory of a VCH, bytes."""

    def __init__(self, docker: Docker, templates: Path):
        self.controller = of_process(docker.server.pid)
        files = {of_file(path.stat()) for path in templates.rglob("*") if path.is_file()}
        self.template = sum(size for _, size in files)
        self.all = self.controller
        self.machines = 0
        for process in machines(docker):
            try:
                self.all += of_process(process.name)
                for opened in (process / "fd").iterdir():
                    if os.readlink(opened).startswith(("/memfd:", str(templates))):
                        files.add(of_file(opened.stat()))
            except OSError:
                # Ended meanwhile.
                continue
            self.machines += 1
        self.all += sum(size for _, size in files)


def of_file(status) -> tuple:
    """A file by what it is, and its pages."""
    return (status.st_dev, status.st_ino), status.st_blocks * 512


def of_process(pid) -> int:
    """Its share of anonymous and file pages, and its page tables."""
    wanted = ("Pss_Anon:", "Pss_File:", "VmPTE:")
    lines = [
        line.split() for name in ("smaps_rollup", "status") for line in Path(f"/proc/{pid}/{name}").read_text().splitlines()
    ]
    return sum(int(words[1]) << 10 for words in lines if words and words[0] in wanted)


def settled(docker: Docker, templates: Path, machines: int) -> Held:
    """What is held once it grows no more: by less than a hundredth in three seconds."""
    until = time.monotonic() + SETTLED
    before = Held(docker, templates)
    while True:
        time.sleep(3)
        now = Held(docker, templates)
        if now.machines != machines:
            raise NotMeasured(f"{now.machines} machines run of {machines}")
        if abs(now.all - before.all) < before.all / 100 or time.monotonic() > until:
            return now
        before = now


def started(artifacts, few: int, many: int, how: str) -> Cost:
    with vch(artifacts, "--boot", how) as (docker, templates):
        held = []
        for upto in (few, many):
            for number in range(few if held else 0, upto):
                docker("run", "-d", "--name", f"idle{number}", IMAGE, "sleep", "100000")
            held.append(settled(docker, templates, upto))
        return Cost(few, many, *held)


def forks(artifacts, few: int, many: int) -> Cost:
    return started(artifacts, few, many, "fork")


def booted_machines(artifacts, few: int, many: int) -> Cost:
    return started(artifacts, few, many, "kernel")


def children(artifacts, few: int, many: int) -> Cost:
    """Of one parent and one fork, so that they share all: first all of them, then those that are left."""
    with vch(artifacts) as (docker, templates):
        docker("run", "-d", "--name", "parent", IMAGE, "sleep", "100000")
        names = fork(artifacts, docker, "parent", many)
        with_many = settled(docker, templates, many + 1)
        docker("rm", "-f", *names[few:])
        return Cost(few, many, settled(docker, templates, few + 1), with_many)
