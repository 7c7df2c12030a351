"""How long a container stands still while it is forked, against its memory: as its controller says, and as
who talks to it sees; beside what QEMU has for the purpose, and beside what is silent in any case."""

import contextlib
import json
import re
import socket
import tempfile
import threading
import time
from pathlib import Path

from ...figures import Figure, NotMeasured
from ...guest import DEADLINE, MACHINE, qemu
from ..docker import IMAGE, timed
from .place import fork, machines, vch

# MiB of a guest's memory.
GUESTS = [64, 128, 256, 512]
# How much of it a process writes to before it is forked: nothing, or a third.
FILLS = {"idle": lambda mib: 0, "a third of it written": lambda mib: mib // 3}
SNAPSHOT = "QEMU's stop, migrate to a file, cont"
UNFORKED = "the same process while nobody forks it"
PORT = 7777
# What the controller says of a fork.
SAID = re.compile(r"forked while it runs.* paused_us=(\d+) .*copied_while_stopped=(\d+)")


def measurements(artifacts, plan):
    for mib in GUESTS:
        for kind, fill in FILLS.items():
            guest = f"live fork of {mib} MiB, {kind}"
            figures = ["the parent's pause", "its longest silence", "its pause when it is forked again", "what it has of its own"]
            names = [f"{guest}: {figure}" for figure in figures]
            yield names, lambda names=names, mib=mib, fill=fill(mib): pauses(artifacts, plan, names, mib, fill)


def pauses(artifacts, plan, names, mib, fill):
    """Of parents that were never forked before, each of which is then forked once more."""
    snapshots, silent, quiet, before, after = [], [], [], [], []
    rounds = plan.pairs(10)
    with vch(artifacts, "--container-memory", f"{mib}m") as (docker, _):
        for number in range(rounds):
            port = free_port()
            parent = f"parent{number}"
            words = ["--name", parent, "-p", f"127.0.0.1:{port}:{PORT}", IMAGE, "/ticker", str(fill), str(PORT)]
            docker("create", *words)
            docker("cp", str(artifacts.baseline("ticker")), f"{parent}:/ticker")
            docker("start", parent)
            with Ticks(port) as ticks:
                before.append(own_memory(docker))
                begun = time.monotonic()
                children = fork(artifacts, docker, parent)
                ended = time.monotonic()
                docker("rm", "-f", *children)
                # As long again with nobody forking.
                began = time.monotonic()
                ticks.wait_until(began + (ended - begun))
                silent.append(ticks.longest(begun, ended))
                quiet.append(ticks.longest(began, began + (ended - begun)))
                after.append(own_memory(docker))
                docker("rm", "-f", *fork(artifacts, docker, parent))
            docker("rm", "-f", parent)
            snapshots.append(snapshot(artifacts, mib, fill))
        said = SAID.findall((docker.socket.parent / "log").read_text())
    if len(said) != 2 * rounds:
        raise NotMeasured(f"the controller told of {len(said)} forks of {2 * rounds}")
    first, again = said[::2], said[1::2]
    return [
        Figure("fork", names[0], "seconds", paused(first), snapshots, SNAPSHOT, note=copied(first)),
        Figure("fork", names[1], "seconds", silent, quiet, UNFORKED, note="between two ticks, a millisecond's each, over TCP"),
        Figure("fork", names[2], "seconds", paused(again), snapshots, SNAPSHOT, note=copied(again)),
        Figure("fork", names[3], "bytes", after, before, "before it was forked", note="anonymous memory of its QEMU, once its child is gone"),
    ]


def paused(forks) -> list:
    return [int(microseconds) / 1e6 for microseconds, _ in forks]


def copied(forks) -> str:
    each = sorted(int(copied) for _, copied in forks)
    return f"{each[len(each) // 2] / 1e6:.0f} MB copied while it stands still"


def own_memory(docker) -> int:
    """Anonymous memory of the one QEMU of a VCH, bytes."""
    processes = list(machines(docker))
    if len(processes) != 1:
        raise NotMeasured(f"{len(processes)} machines run, not one")
    lines = (processes[0] / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Ticks:
    """A connection to the ticking process, and when each tick came."""

    def __init__(self, port: int):
        self._port = port
        self._came = []
        self._lock = threading.Condition()

    def __enter__(self) -> "Ticks":
        until = time.monotonic() + DEADLINE
        while True:
            self._stream = socket.create_connection(("127.0.0.1", self._port), timeout=DEADLINE)
            # QEMU accepts before the guest does, and hangs up when nobody listens there yet.
            with contextlib.suppress(ConnectionError):
                if self._stream.recv(1):
                    break
            self._stream.close()
            if time.monotonic() > until:
                raise NotMeasured("the container does not tick")
            time.sleep(0.1)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while self._stream.recv(4096):
                with self._lock:
                    self._came.append(time.monotonic())
                    self._lock.notify()

    def wait_until(self, moment: float) -> None:
        """Returns when a tick has come after `moment`."""
        with self._lock:
            came = self._lock.wait_for(lambda: self._came and self._came[-1] > moment, DEADLINE)
        if not came:
            raise NotMeasured("the container ticks no more")

    def longest(self, begun: float, ended: float) -> float:
        """The longest time without a tick that any moment of that span lies in."""
        with self._lock:
            came = list(self._came)
        gaps = [after - before for before, after in zip(came, came[1:]) if after > begun and before < ended]
        if not gaps:
            raise NotMeasured("the container did not tick")
        return max(gaps)


def snapshot(artifacts, mib, fill) -> float:
    """Seconds that a machine stands still of whose memory QEMU makes a copy on a tmpfs."""
    console, console_end = socket.socketpair()
    control, control_end = socket.socketpair()
    arguments = [
        *MACHINE,
        *("-m", f"{mib}M"),
        *("-chardev", f"socket,id=console,fd={console_end.fileno()}"),
        *("-device", "isa-serial,chardev=console"),
        *("-chardev", f"socket,id=control,fd={control_end.fileno()}"),
        *("-mon", "chardev=control,mode=control"),
        *("-kernel", str(artifacts.kernel()), "-initrd", str(artifacts.initramfs("ticker"))),
        *("-append", f"console=ttyS0 quiet panic=-1 -- {fill}"),
    ]
    with console, control, contextlib.ExitStack() as stack:
        with console_end, control_end:
            process = stack.enter_context(qemu(arguments, (console_end.fileno(), control_end.fileno())))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tether-bench.", dir="/dev/shm")))
        console.settimeout(DEADLINE)
        said = b""
        while b"!" not in said:
            got = console.recv(4096)
            if not got:
                raise NotMeasured(f"QEMU ended: {process.stderr.read().strip()[-300:]}")
            said += got
        control.settimeout(DEADLINE)
        monitor = Monitor(control)
        # QEMU's own limit is 128 MiB a second.
        monitor.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        monitor.ask("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        begun = time.monotonic()
        monitor.ask("stop")
        monitor.ask("migrate", uri=f"exec:cat >{directory}/memory")
        monitor.migrated()
        monitor.go_on()
        return time.monotonic() - begun


class Refused(NotMeasured):
    """What QEMU does not do."""


class Monitor:
    """QEMU's control socket (docs/interop/qmp-spec.rst)."""

    def __init__(self, control: socket.socket):
        self._control = control
        self._lines = control.makefile()
        self._lines.readline()
        self.ask("qmp_capabilities")

    def _next(self) -> dict:
        line = self._lines.readline()
        if not line:
            raise NotMeasured("QEMU closed its control socket")
        return json.loads(line)

    def ask(self, command: str, **arguments) -> None:
        self._events = []
        self._control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._next()
            if "error" in message:
                raise Refused(f"QEMU's {command}: {message['error']['desc']}")
            if "return" in message:
                return
            self._events.append(message)

    def migrated(self) -> None:
        """Waits for the end of a migration that was just asked for."""
        while True:
            for message in self._events:
                status = message.get("data", {}).get("status") if message.get("event") == "MIGRATION" else None
                if status == "completed":
                    return
                if status in ("failed", "cancelled"):
                    raise NotMeasured(f"QEMU's migration {status}")
            self._events = [self._next()]

    def go_on(self) -> None:
        """Lets the guest run; QEMU refuses for a moment after it has said that a migration is over."""
        until = time.monotonic() + DEADLINE
        while True:
            try:
                return self.ask("cont")
            except Refused:
                if time.monotonic() > until:
                    raise
                time.sleep(0.0002)
