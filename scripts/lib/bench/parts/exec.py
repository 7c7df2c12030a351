"""What a process costs that is started through the link, beside fork and exec behind a bare carrier."""

from ..figures import Figure, quantile
from .channel import Pair

SUBJECT = "exec of /bin/true through the link"


def measurements(artifacts, plan):
    def true():
        measured = Pair(artifacts).measure("exec", pairs=plan.pairs(200))
        ours, theirs = measured["ours"], measured["theirs"]
        yield Figure(
            "exec",
            "exec of /bin/true",
            "seconds",
            ours,
            theirs,
            "carrier echo + fork + exec in C",
            note="from the request to the exit status; both in the same root on a virtio-serial port",
        )
        yield Figure(
            "exec",
            "exec of /bin/true, 99th percentile",
            "seconds",
            [quantile(ours, 0.99)],
            [quantile(theirs, 0.99)],
            "carrier echo + fork + exec in C",
            note=f"of {len(ours)} each",
        )

    yield ["exec of /bin/true", "exec of /bin/true, 99th percentile"], true
