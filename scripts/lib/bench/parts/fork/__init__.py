"""Forks: from a template, of a running container, and what idle children hold of the host's memory."""

from . import idle, live, template

SUBJECT = (
    "fork to tether's answer and to a process's first byte, beside boots and a trivial restore; the memory of "
    "a fork, of idle children, and how many fit; a parent's pause"
)


def measurements(artifacts, plan):
    for piece in (template, live, idle):
        yield from piece.measurements(artifacts, plan)
