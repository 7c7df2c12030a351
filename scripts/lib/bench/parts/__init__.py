"""The parts of the benchmark, in the order they run.

A part has a `SUBJECT`, one line for `--help`, and `measurements(artifacts, plan)`, which gives pairs:
the names of some figures, and what measures them together.
"""

from . import docker, exec, fork, image_import, kernel_start, memory, ready, run, size, throughput, vsphere

PARTS = {
    "size": size,
    "memory": memory,
    "kernel": kernel_start,
    "ready": ready,
    "exec": exec,
    "fork": fork,
    "throughput": throughput,
    "image": image_import,
    "run": run,
    "docker": docker,
    "vsphere": vsphere,
}
