"""How fast a program's output reaches the host, beside the same bytes written straight on the carrier."""

from ..figures import Figure
from .channel import Pair

SUBJECT = "standard output through the link, on every channel"

# How many MiB a channel is asked to carry: some seconds' worth.
AMOUNTS = {"virtio": 128, "vsock": 128, "serial": 1}


def measurements(artifacts, plan):
    for channel, mib in AMOUNTS.items():
        name = f"stdout, {channel}"

        def output(channel=channel, mib=mib, name=name):
            samples = Pair(artifacts).measure(
                "throughput", "--mib", mib, channel=channel, pairs=plan.pairs(7)
            )
            yield Figure(
                "throughput",
                name,
                "bytes/s",
                samples["ours"],
                samples["theirs"],
                f"raw {channel} carrier",
                better="more",
                goal=0.60,
                hoped=0.85,
                note=f"{mib} MiB from a C program's write(2) to the host's read(2)",
            )
            yield Figure(
                "throughput",
                f"{name}, beside a relay",
                "bytes/s",
                samples["ours"],
                samples["relayed"],
                f"C: pipe to raw {channel} carrier",
                better="more",
                note="the least any agent does: the program's pipe read and written on, nothing kept",
            )

        yield [name, f"{name}, beside a relay"], output
