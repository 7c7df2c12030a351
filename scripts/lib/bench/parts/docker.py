"""The stock docker command line against `vch serve`, with real guests."""

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..artifacts import extract
from ..figures import Figure, NotMeasured, quantile

SUBJECT = "docker run, create, start, exec, stop, rm against vch serve, beside runc; cost of an idle container"
IMAGE = "bench/busybox:latest"
RUNC = "runc run of the same root"
# How its VM begins, and the flag of `vch serve` for that.
HOW = {"forked": "fork", "booted": "kernel"}
STEPS = ["create", "start", "exec", "stop", "rm"]
AT_ONCE = [1, 10, 50]
# What a containerVM gets here: a guest with busybox needs less.
MEMORY = "64m"
DEADLINE = 600.0


def measurements(artifacts, plan):
    def end_to_end():
        took = {how: [] for how in HOW}
        theirs = []
        with contextlib.ExitStack() as stack:
            dockers = {how: stack.enter_context(serving(artifacts, "--boot", boot)) for how, boot in HOW.items()}
            run_in_runc = stack.enter_context(runc(artifacts, ["true"]))
            for number in range(plan.pairs(50) + 1):
                one = {how: timed(docker, "run", "--rm", "-m", MEMORY, IMAGE, "true") for how, docker in dockers.items()}
                other = run_in_runc()
                # The first of each reads its files from the disk, and makes the template.
                if number > 0:
                    theirs.append(other)
                    for how in HOW:
                        took[how].append(one[how])
        for how, ours in took.items():
            yield Figure("docker", f"docker run --rm busybox true, {how}", "seconds", ours, theirs, RUNC)
            yield Figure(
                "docker",
                f"docker run --rm busybox true, {how}, 99th percentile",
                "seconds",
                [quantile(ours, 0.99)],
                [quantile(theirs, 0.99)],
                RUNC,
                note=f"of {len(ours)} each",
            )
        yield Figure(
            "docker", "docker run --rm busybox true, forked", "seconds", took["forked"], took["booted"], "the same, booted"
        )

    def steps():
        took = {step: [] for step in STEPS}
        theirs = []
        with serving(artifacts) as docker, runc(artifacts, ["true"]) as run_in_runc:
            for number in range(plan.pairs(15) + 1):
                name = f"steps{number}"
                one = {
                    "create": timed(docker, "create", "--name", name, "-m", MEMORY, IMAGE, "sleep", "1000"),
                    "start": timed(docker, "start", name),
                    "exec": timed(docker, "exec", name, "true"),
                    "stop": timed(docker, "stop", "-t", "0", name),
                    "rm": timed(docker, "rm", name),
                }
                other = run_in_runc()
                if number > 0:
                    theirs.append(other)
                    for step in STEPS:
                        took[step].append(one[step])
        for step in STEPS:
            yield Figure("docker", f"docker {step}", "seconds", took[step], theirs, RUNC)

    def at_once():
        with serving(artifacts) as docker, runc(artifacts, ["true"]) as run_in_runc:
            for count in AT_ONCE:
                ours, theirs = [], []
                with ThreadPoolExecutor(count) as pool:
                    for _ in range(plan.pairs(5)):
                        ours.append(together(pool, count, lambda _: timed(docker, "run", "--rm", "-m", MEMORY, IMAGE, "true")))
                        theirs.append(together(pool, count, lambda _: run_in_runc()))
                yield Figure("docker", f"{count} docker run at once", "seconds", ours, theirs, f"{count} runc run at once")

    def idle():
        count = plan.pairs(20)
        with serving(artifacts) as docker:
            before = docker.memory()
            for number in range(count):
                timed(docker, "run", "-d", "--name", f"idle{number}", "-m", MEMORY, IMAGE, "sleep", "100000")
            time.sleep(2)
            after, cpu = docker.memory(), docker.processor()
            time.sleep(10)
            cpu = docker.processor() - cpu
            per_container = (after - before) / count
            yield Figure(
                "docker", "controller's memory, each idle container", "bytes", [per_container], [before], "controller without containers"
            )
            yield Figure(
                "docker",
                f"controller's processor time with {count} idle containers",
                "seconds a second",
                [cpu / 10],
                [1.0],
                "one processor",
            )
            timed(docker, "rm", "-f", *(f"idle{number}" for number in range(count)))

    runs = [f"docker run --rm busybox true, {how}" for how in HOW]
    yield [*runs, *(f"{run}, 99th percentile" for run in runs)], end_to_end
    yield [f"docker {step}" for step in STEPS], steps
    yield [f"{count} docker run at once" for count in AT_ONCE], at_once
    yield ["controller's memory, each idle container", "controller's processor time"], idle


class Docker:
    """The command line, and the controller that answers it."""

    def __init__(self, program: str, socket: Path, server: subprocess.Popen):
        self.program = program
        self.socket = socket
        self.server = server

    def __call__(self, *arguments) -> None:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(self.socket.parent)}
        result = subprocess.run(
            [self.program, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
        )
        if result.returncode != 0:
            raise NotMeasured(f"docker {arguments[0]} exited with {result.returncode}: {result.stderr.strip()[-300:]}")

    def memory(self) -> int:
        """The controller's private memory, bytes (proc(5), smaps_rollup)."""
        fields = Path(f"/proc/{self.server.pid}/smaps_rollup").read_text()
        private = [line.split()[1] for line in fields.splitlines() if line.startswith(("Private_Clean", "Private_Dirty"))]
        return sum(int(kilobytes) * 1024 for kilobytes in private)

    def processor(self) -> float:
        """Processor time the controller has used, seconds."""
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(artifacts, *flags):
    program = shutil.which("docker")
    if program is None:
        raise NotMeasured("there is no docker command line on this machine")
    vch = artifacts.program("vch", "bin", "vch")
    directory = artifacts.scratch / f"serve{time.monotonic_ns()}"
    directory.mkdir()
    socket, log = directory / "docker.sock", directory / "log"
    environment = {**os.environ, "VCH_BOOT_IMAGE": str(artifacts.boot_image())}
    with open(log, "w") as errors:
        server = subprocess.Popen(
            [vch, "serve", "--state", directory / "state", "--host", f"unix://{socket}", *flags],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    docker = Docker(program, socket, server)
    try:
        wait_for(socket, server, log)
        archive = directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(named(artifacts.sample("busybox"), directory), arcname=".")
        docker("load", "-i", str(archive))
        yield docker
    finally:
        with contextlib.suppress(NotMeasured, subprocess.SubprocessError):
            listed = subprocess.run(
                [program, "ps", "-aq"], env={**os.environ, "DOCKER_HOST": f"unix://{socket}"}, capture_output=True, text=True
            )
            if listed.stdout.split():
                docker("rm", "-f", *listed.stdout.split())
        server.terminate()
        server.wait(timeout=30)


def named(layout: Path, directory: Path) -> Path:
    """A copy of a layout whose image has a whole name, for `docker load`."""
    copy = directory / "layout"
    shutil.copytree(layout, copy)
    index = json.loads((copy / "index.json").read_text())
    for manifest in index["manifests"]:
        manifest.setdefault("annotations", {})["io.containerd.image.name"] = IMAGE
    (copy / "index.json").write_text(json.dumps(index))
    return copy


def wait_for(socket: Path, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 60
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > until:
            raise NotMeasured(f"vch serve did not come up: {log.read_text().strip()[-300:]}")
        time.sleep(0.02)


@contextlib.contextmanager
def runc(artifacts, command):
    """What runs a command in runc in the busybox image's root and says how long it took; many may run at once."""
    program = shutil.which("runc")
    if program is None:
        raise NotMeasured("runc is not installed")
    bundle = artifacts.scratch / f"bundle{time.monotonic_ns()}"
    bundle.mkdir()
    extract(artifacts.sample("busybox"), bundle / "rootfs")
    subprocess.run([program, "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    config["process"]["args"] = command
    config["root"]["readonly"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    started = iter(range(10**9))

    def run() -> float:
        number = next(started)
        begin = time.monotonic()
        result = subprocess.run(
            [program, "run", f"bench-{os.getpid()}-{number}"],
            cwd=bundle,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
        )
        if result.returncode != 0:
            raise NotMeasured(f"runc run exited with {result.returncode}: {result.stderr.strip()[-300:]}")
        return time.monotonic() - begin

    yield run


def timed(docker: Docker, *arguments) -> float:
    begin = time.monotonic()
    docker(*arguments)
    return time.monotonic() - begin


def together(pool: ThreadPoolExecutor, count: int, work) -> float:
    """How long `count` at once take, all told."""
    begin = time.monotonic()
    for done in pool.map(work, range(count)):
        assert done > 0
    return time.monotonic() - begin
