"""The command line: see scripts/bench."""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from . import report
from .artifacts import Artifacts
from .figures import Missing, NotMeasured, Plan, Results
from .parts import PARTS


def main() -> int:
    arguments = parse()
    started = datetime.datetime.now(datetime.timezone.utc)
    before = os.getloadavg()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="tether-bench.") as scratch:
        artifacts = Artifacts(Path(arguments.root), Path(scratch))
        plan = Plan(0.2 if arguments.quick else 1.0, arguments.repeats)
        for name in arguments.part or PARTS:
            measure(name, artifacts, plan, results)
    about = {
        "started": started.isoformat(timespec="seconds"),
        "commit": output("git", "-C", arguments.root, "describe", "--always", "--dirty"),
        "host": f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}",
        "qemu": output("qemu-system-x86_64", "--version").partition("\n")[0],
        "load": {"before": before, "after": os.getloadavg()},
    }
    print(report.table(results.entries))
    print(
        "%s; %s; %s; load %.1f before, %.1f after"
        % (about["commit"], about["host"], about["qemu"], before[0], about["load"]["after"][0])
    )
    if arguments.json:
        write_whole(Path(arguments.json), report.as_json(results.entries, about))
    return 0


def parse():
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures every figure beside its baseline and prints both, with goal and verdict. "
        "A missed goal is not a failure.",
        epilog="parts: " + "; ".join(f"{name}: {part.SUBJECT}" for name, part in PARTS.items()),
    )
    parser.add_argument("part", nargs="*", metavar="PART", help="only these parts (see below)")
    parser.add_argument("--json", metavar="FILE", help="write every sample there as well")
    parser.add_argument("--repeats", type=int, metavar="N", help="N pairs of everything")
    parser.add_argument("--quick", action="store_true", help="a fifth of the usual repeats")
    parser.add_argument("--root", required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.part:
        if name not in PARTS:
            parser.error(f"no part {name}; there are {', '.join(PARTS)}")
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error("--repeats: at least 1")
    return arguments


def measure(name: str, artifacts: Artifacts, plan: Plan, results: Results) -> None:
    """Runs one part. What it fails at is in the table, never missing from it."""
    part = PARTS[name]
    for figure_names, run in part.measurements(artifacts, plan):
        print(f"==> {name}: {', '.join(figure_names)}", file=sys.stderr, flush=True)
        try:
            results.add(*run())
        except NotMeasured as why:
            results.add(*(Missing(name, figure, str(why)) for figure in figure_names))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
            results.add(*(Missing(name, figure, reason) for figure in figure_names))


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
