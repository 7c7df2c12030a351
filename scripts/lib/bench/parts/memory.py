"""What PID 1 of an idle machine holds."""

from ..figures import Figure
from .channel import Pair

SUBJECT = "memory of an idle tether"


def measurements(artifacts, plan):
    def idle():
        samples = Pair(artifacts).measure("memory")
        ours, theirs = samples["ours"], samples["theirs"]
        for name, line, goals in (
            ("idle tether, private memory", "private", {"goal": 1 << 20, "hoped": 400 << 10}),
            ("idle tether, resident with its text", "resident", {}),
        ):
            yield Figure(
                "memory",
                name,
                "memory",
                [ours[line]],
                [theirs[line]],
                "C agent",
                judged="ours",
                note={
                    "private": "RssAnon of PID 1 with one container process running, read in the guest",
                    "resident": "VmRSS of PID 1; its text lies in the initramfs in any case",
                }[line],
                **goals,
            )

    yield ["idle tether, private memory", "idle tether, resident with its text"], idle
