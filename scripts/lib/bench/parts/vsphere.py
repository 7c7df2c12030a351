"""The vSphere driver against a simulated vCenter: calls for each step, and many machines at once."""

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from ..artifacts import run
from ..figures import Figure, NotMeasured
from .docker import IMAGE, MEMORY, Docker, named, wait_for

SUBJECT = "vSphere: calls for create, start, exec, stop, rm; 200 containers created at once; beside pyVmomi"
THEIRS = "a plain pyVmomi script"
USER = "administrator@vsphere.local"
PYVMOMI = "pyvmomi-9.1.1.0"
STEPS = ["create", "start", "exec", "stop", "rm"]
# What a host and its network take to answer, milliseconds.
LATENCY = 5
MANY = 200
THREADS = 16


def measurements(artifacts, plan):
    names = [f"vSphere calls to {step}" for step in STEPS]

    def calls():
        with simulator(artifacts, "--guests") as server, served(artifacts, server) as docker:
            ours = {step: [] for step in STEPS}
            for number in range(plan.pairs(5) + 1):
                name = f"steps{number}"
                for step, words in [
                    ("create", ["create", "--name", name, "-m", MEMORY, IMAGE, "sleep", "1000"]),
                    ("start", ["start", name]),
                    ("exec", ["exec", name, "true"]),
                    ("stop", ["stop", "-t", "0", name]),
                    ("rm", ["rm", name]),
                ]:
                    server.forget()
                    docker(*words)
                    if step == "rm":
                        # Its disk goes after it, while nobody waits.
                        server.settled("DeleteVirtualDisk_Task")
                    counted = server.calls()
                    # The first uploads boot image and disk.
                    if number > 0:
                        ours[step].append(counted)
            theirs = json.loads(pyvmomi(artifacts, server, "steps", server.control))
        for step in STEPS:
            # Its script has no exec: the host has no way into a guest.
            beside = theirs.get(step, theirs["start"])
            yield Figure(
                "vsphere",
                f"vSphere calls to {step}",
                "calls",
                ours[step],
                [beside] * len(ours[step]),
                THEIRS if step in theirs else f"{THEIRS}'s power on",
                judged="ours",
                goal={"create": 1, "start": 2, "exec": 0}.get(step),
                note="without the one that waits for all changes",
            )

    def many():
        count = MANY if plan.pairs(2) > 1 else 50
        with simulator(artifacts) as server, served(artifacts, server) as docker:
            docker("create", "--name", "first", "-m", MEMORY, IMAGE, "true")
            server.put("/latency", {"ms": LATENCY})
            server.forget()
            begun = time.monotonic()
            with ThreadPoolExecutor(THREADS) as pool:
                create = lambda number: docker("create", "--name", f"many{number}", "-m", MEMORY, IMAGE, "true")
                list(pool.map(create, range(count)))
            ours = time.monotonic() - begun
            each = server.calls() / count
        with simulator(artifacts, "--latency", f"{LATENCY}ms") as server:
            theirs = float(pyvmomi(artifacts, server, str(count), str(THREADS)))
        note = f"{LATENCY} ms a call, {THREADS} at a time; {each:.1f} calls each, and the docker command line's own start"
        yield Figure("vsphere", "many containers created at once", "seconds", [ours], [theirs], THEIRS, note=note)

    yield names, calls
    yield ["many containers created at once"], many


class Server:
    """A simulated vCenter."""

    def __init__(self, ready: dict, password):
        self.url = ready["url"]
        self.thumbprint = ready["thumbprint_sha256"]
        self.control = ready["control"]
        self.password = password

    def environment(self) -> dict:
        return {
            **os.environ,
            "VSPHERE_SERVER": self.url,
            "VSPHERE_THUMBPRINT": self.thumbprint,
            "VSPHERE_USER": USER,
            "VSPHERE_PASSWORD": self.password.read_text(),
            "VSPHERE_DATACENTER": "/DC0",
            "VSPHERE_DATASTORE": "LocalDS_0",
            "VSPHERE_RESOURCE_POOL": "/DC0/host/DC0_C0/Resources",
        }

    def put(self, path: str, body: dict) -> None:
        self.ask("PUT", path, json.dumps(body).encode())

    def forget(self) -> None:
        self.ask("DELETE", "/calls")

    def calls(self) -> int:
        """Requests since they were forgotten, but for the one that waits for changes."""
        counted = json.loads(self.ask("GET", "/calls"))
        return sum(count for method, count in counted.items() if method != "WaitForUpdatesEx")

    def settled(self, method: str) -> None:
        """Waits until this was called."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if method in json.loads(self.ask("GET", "/calls")):
                return
            time.sleep(0.02)
        raise NotMeasured(f"{method} was never called")

    def ask(self, method: str, path: str, body=None) -> bytes:
        request = urllib.request.Request(self.control + path, method=method, data=body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


@contextlib.contextmanager
def simulator(artifacts, *flags):
    program = run([artifacts.root / "scripts/vsphere-simulator"], "scripts/vsphere-simulator").strip()
    directory = artifacts.scratch / f"vsphere{time.monotonic_ns()}"
    directory.mkdir()
    password = directory / "password"
    password.write_text("simulated")
    with open(directory / "log", "w") as log:
        server = subprocess.Popen(
            [program, "--kind", "vpx", "--listen", "127.0.0.1:0", "--user", USER, "--password-file", password]
            + ["--datastore", directory / "datastore", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        line = server.stdout.readline()
        if not line:
            raise NotMeasured(f"the simulator did not come up: {(directory / 'log').read_text()[-300:]}")
        yield Server(json.loads(line), password)
    finally:
        server.stdin.close()
        server.wait(timeout=60)


@contextlib.contextmanager
def served(artifacts, server: Server):
    """A VCH on it, with the busybox image."""
    docker = shutil.which("docker")
    if docker is None:
        raise NotMeasured("there is no docker command line on this machine")
    vch = artifacts.program("vch", "bin", "vch")
    directory = artifacts.scratch / f"vch{time.monotonic_ns()}"
    directory.mkdir()
    environment = {**server.environment(), "VCH_BOOT_IMAGE": str(artifacts.boot_image()), "VCH_STATE": str(directory / "state")}
    create = [vch, "host", "create", "bench", "--network", "VM Network", "--memory-limit", "64g", "--accept", "firewall"]
    run(create, "vch host create", env=environment)
    layout = named(artifacts.sample("busybox"), directory)
    run([vch, "image", "import", "--tag", IMAGE, f"oci:{layout}"], "vch image import", env=environment)
    socket, log = directory / "docker.sock", directory / "log"
    with open(log, "w") as errors:
        serving = subprocess.Popen(
            [vch, "serve", "--driver", "vsphere", "--name", "bench", "--host", f"unix://{socket}"]
            + ["--concentrator", "127.0.0.1:0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        wait_for(socket, serving, log)
        yield Docker(docker, socket, serving)
    finally:
        serving.terminate()
        serving.wait(timeout=60)


def pyvmomi(artifacts, server: Server, *arguments) -> str:
    python = artifacts.cache / f"python-{PYVMOMI}" / "bin" / "python"
    if not python.exists():
        raise NotMeasured("there is no pyVmomi: scripts/test vsphere installs it")
    script = artifacts.root / "scripts/bench-baselines/vsphere.py"
    return run([python, script, server.url, USER, server.password, *arguments], THEIRS)
