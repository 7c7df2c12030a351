"""A trivial guest: when its firmware hands over, when it speaks, when it is off, and how many
instructions it has executed by then.

The machine is the one that the QEMU driver makes for a containerVM booted from a kernel, without its
devices. Emulation is asked for by name, so that the figures of two machines can be compared.
"""

import contextlib
import mmap
import selectors
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

from .figures import NotMeasured

# What SeaBIOS says on its debug port before it starts what QEMU loaded.
HANDED_OVER = b"Booting from ROM"
# A guest that is silent for so long will stay so.
DEADLINE = 120.0

MACHINE = [
    "qemu-system-x86_64",
    *("-nodefaults", "-no-user-config", "-display", "none"),
    *("-machine", "q35,usb=off,sata=off,smbus=off,vmport=off,smm=off,hpet=off"),
    *("-accel", "tcg,thread=single,tb-size=128"),
    *("-cpu", "max,la57=off,erms=off,fsrm=off"),
    *("-smp", "1"),
]
ARGUMENTS = [*MACHINE, "-m", "256M"]


class Counter:
    """The guest's instructions so far, from the memory that QEMU's plugin counts in."""

    def __init__(self, plugin: Path, file: Path):
        file.write_bytes(bytes(8))
        self.arguments = ["-plugin", f"{plugin},into={file}"]
        with open(file, "rb") as opened:
            self._memory = mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)

    def read(self) -> int:
        return struct.unpack("=Q", self._memory[:8])[0]

    def settled(self) -> int:
        """The count once the guest has nothing more to do: when it no longer changes."""
        before = self.read()
        while True:
            time.sleep(0.02)
            now = self.read()
            # A timer tick may come in between: a few thousand instructions.
            if now - before < 20_000:
                return before
            before = now


@dataclass
class Boot:
    """How one boot went: seconds from QEMU's start on, and instructions where they were counted."""

    handed_over: float
    spoke: float
    off: Optional[float]
    instructions: Optional[int]

    @property
    def kernel(self) -> float:
        """From the firmware's hand-over to the first byte of PID 1."""
        return self.spoke - self.handed_over


@contextlib.contextmanager
def qemu(arguments: list, fds: tuple) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        arguments,
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def boot(kernel: Path, initramfs: Path, counter: Optional[Counter] = None, off: bool = False) -> Boot:
    """Boots `kernel` with an init that writes `!` on the console, and waits for that; with `off`, for
    the machine's end as well."""
    console, console_end = socket.socketpair()
    debug, debug_end = socket.socketpair()
    append = "console=ttyS0 quiet panic=-1" + (" -- off" if off else "")
    arguments = [
        *ARGUMENTS,
        *("-chardev", f"socket,id=console,fd={console_end.fileno()}"),
        *("-device", "isa-serial,chardev=console"),
        *("-chardev", f"socket,id=debug,fd={debug_end.fileno()}"),
        *("-device", "isa-debugcon,iobase=0x402,chardev=debug"),
        *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", append),
        *(counter.arguments if counter else []),
    ]
    with console, debug, contextlib.ExitStack() as stack:
        with console_end, debug_end:
            fds = (console_end.fileno(), debug_end.fileno())
            started = time.monotonic()
            process = stack.enter_context(qemu(arguments, fds))
        said, firmware = bytearray(), bytearray()
        handed_over, at_hand_over = 0.0, 0
        with selectors.DefaultSelector() as selector:
            selector.register(console, selectors.EVENT_READ, said)
            selector.register(debug, selectors.EVENT_READ, firmware)
            while b"!" not in said:
                ready = selector.select(DEADLINE)
                if not ready:
                    raise NotMeasured(f"{kernel} said nothing for {DEADLINE:.0f} s but {bytes(said[-200:])!r}")
                for key, _ in ready:
                    got = key.fileobj.recv(65536)
                    if not got:
                        raise NotMeasured(f"QEMU ended: {process.stderr.read().strip()[-300:]}")
                    key.data.extend(got)
                    if not handed_over and HANDED_OVER in firmware:
                        handed_over = time.monotonic() - started
                        at_hand_over = counter.read() if counter else 0
        spoke = time.monotonic() - started
        instructions = counter.settled() - at_hand_over if counter else None
        ended = None
        if off:
            process.wait(DEADLINE)
            ended = time.monotonic() - started
        return Boot(handed_over, spoke, ended, instructions)
