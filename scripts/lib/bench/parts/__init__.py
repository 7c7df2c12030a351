"""The parts of the benchmark, in the order they run.

A part has a `SUBJECT`, one line for `--help`, and `measurements(artifacts, plan)`, which gives pairs:
the names of some figures, and what measures them together.
"""

from . import image_import, kernel_start, size

PARTS = {
    "size": size,
    "kernel": kernel_start,
    "image": image_import,
}
