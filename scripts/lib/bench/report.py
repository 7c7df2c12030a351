"""Figures as a table for people and as JSON for programs."""

import json
import math
from typing import Iterable, Optional

from .figures import Figure, Missing, Spread, quantile

SIZES = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]


def amount(value: Optional[float], unit: str) -> str:
    """A value with its unit, three digits."""
    if value is None:
        return "-"
    if unit == "bytes":
        # Kernel and disk sizes are spoken of in decimal, memory in binary.
        for scale, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
            if value >= scale:
                return f"{digits(value / scale)} {name}"
        return f"{value:.0f} B"
    if unit == "memory":
        for scale, name in SIZES:
            if value >= scale:
                return f"{digits(value / scale)} {name}"
        return f"{value:.0f} B"
    if unit == "seconds":
        if value >= 1:
            return f"{digits(value)} s"
        return f"{digits(value * 1e3)} ms" if value >= 1e-3 else f"{digits(value * 1e6)} us"
    if unit == "instructions":
        return f"{digits(value / 1e6)} M insn"
    if unit == "bytes/s":
        return f"{digits(value / 1e6)} MB/s"
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    if value == 0 or math.isinf(value):
        return str(value)
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 3)}f}"


def spread_text(spread: Spread) -> str:
    if spread.count == 1:
        return digits(spread.median)
    return f"{digits(spread.median)} ({digits(spread.low)}..{digits(spread.high)})"


def mark(figure: Figure, value: Optional[float]) -> str:
    if value is None:
        return "-"
    if figure.judged == "ratio":
        return f"{'<=' if figure.better == 'less' else '>='} {value:g}x"
    return f"{'<=' if figure.better == 'less' else '>='} {amount(value, figure.unit)}"


HEADINGS = ("figure", "ours", "baseline", "", "ratio (spread)", "n", "goal", "hoped", "verdict")


def table(entries: Iterable) -> str:
    """The table, and below it the notes on its lines."""
    rows, notes = [], []
    for entry in entries:
        if isinstance(entry, Missing):
            rows.append((entry.name, f"not measured: {entry.reason}"))
            continue
        ours, baseline = Spread.of(entry.ours), Spread.of(entry.baseline)
        name = entry.name
        if entry.note:
            if entry.note not in notes:
                notes.append(entry.note)
            name += f" [{notes.index(entry.note) + 1}]"
        rows.append(
            (
                name,
                amount(ours.median, entry.unit),
                amount(baseline.median, entry.unit),
                entry.baseline_name,
                spread_text(entry.ratio),
                str(ours.count),
                mark(entry, entry.goal),
                mark(entry, entry.hoped),
                entry.verdict,
            )
        )
    full = [row for row in rows if len(row) == len(HEADINGS)]
    widths = [max(len(row[i]) for row in [HEADINGS, *full]) for i in range(len(HEADINGS))]
    widths[0] = max(len(row[0]) for row in [HEADINGS, *rows])
    lines = [line(HEADINGS, widths), line(["-" * width for width in widths], widths)]
    lines += [line(row, widths) for row in rows]
    lines += ["", "ours and baseline: medians. spread: quartiles of the pairs' ratios, least and most below ten pairs."]
    lines += [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(lines)


def line(cells, widths) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()


def as_json(entries: Iterable, about: dict) -> str:
    figures = []
    for entry in entries:
        if isinstance(entry, Missing):
            figures.append({"part": entry.part, "name": entry.name, "not_measured": entry.reason})
            continue
        figures.append(
            {
                "part": entry.part,
                "name": entry.name,
                "unit": "bytes" if entry.unit == "memory" else entry.unit,
                "ours": samples_json(entry.ours),
                "baseline": {"what": entry.baseline_name, **samples_json(entry.baseline)},
                "ratio": vars(entry.ratio),
                "judged": entry.judged,
                "better": entry.better,
                "goal": entry.goal,
                "hoped": entry.hoped,
                "verdict": entry.verdict,
                "note": entry.note,
            }
        )
    return json.dumps({**about, "figures": figures}, indent=2) + "\n"


def samples_json(samples) -> dict:
    return {
        "median": quantile(samples, 0.5),
        "first_quartile": quantile(samples, 0.25),
        "third_quartile": quantile(samples, 0.75),
        "least": min(samples),
        "most": max(samples),
        "samples": list(samples),
    }
