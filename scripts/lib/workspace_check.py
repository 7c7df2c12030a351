#!/usr/bin/env python3
"""Checks what the compiler does not: which crate may name which, licences, where unsafe code is.

Reads `cargo metadata` and the sources; prints a line a check and ends with `N passed, N failed`.
"""
import json
import pathlib
import re
import subprocess
import sys

# A crate of ours -> the crates of ours it may name (see ARCHITECTURE.md). `hypervisor` has the wire
# because its in-process fake runs the real protocol; `image` because it
# speaks the records of files.
LAYERS = {
    "tether-wire": set(),
    "tether": {"tether-wire"},
    "bootimage": set(),
    "tether-link": {"tether-wire"},
    "image": {"tether-wire"},
    "hypervisor": {"tether-wire"},
    "network": set(),
    "qemu": {"hypervisor"},
    "vsphere": {"hypervisor", "image"},
    "portlayer": {"tether-link", "tether-wire", "image", "hypervisor", "network"},
    "docker-api": {"portlayer"},
    "vch": {"tether-link", "tether-wire", "image", "hypervisor", "network", "qemu", "vsphere", "portlayer", "docker-api"},
    "qemu-tests": {"tether-link", "tether-wire", "image", "hypervisor", "qemu", "bootimage"},
}
# Only for tests of these.
DEV_LAYERS = {"tether": {"tether-link"}, "tether-link": {"hypervisor"}, "qemu": {"tether-wire", "tether-link"},
              "vsphere": {"tether-wire", "tether-link"},
              "docker-api": {"hypervisor"}}

LICENCES = {
    "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib",
    "0BSD", "Unlicense", "CC0-1.0", "Unicode-3.0", "BSL-1.0", "CDLA-Permissive-2.0", "OpenSSL",
}


def allowed(expression):
    """Whether an SPDX expression can be satisfied with the licences above."""
    expression = expression.replace("/", " OR ")
    for name in sorted(LICENCES, key=len, reverse=True):
        expression = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-]| WITH)", "True", expression)
    expression = re.sub(r"\bOR\b", "or", re.sub(r"\bAND\b", "and", expression))
    expression = re.sub(r"\b(?!True\b|or\b|and\b)[A-Za-z][\w.+-]*( WITH [\w.-]+)?", "False", expression)
    return bool(eval(expression, {"__builtins__": {}}))  # only True, False, or, and, brackets are left


def main():
    metadata = json.loads(subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked"], check=True, stdout=subprocess.PIPE).stdout)
    members = set(metadata["workspace_members"])
    ours = {p["name"]: p for p in metadata["packages"] if p["id"] in members}
    passed, problems = 0, []

    for name, package in sorted(ours.items()):
        may = LAYERS.get(name)
        if may is None:
            problems.append(f"{name}: a crate without a place in LAYERS of {sys.argv[0]}")
            continue
        wrong = []
        for dependency in package["dependencies"]:
            if dependency["name"] not in ours:
                continue
            fine = may | (DEV_LAYERS.get(name, set()) if dependency["kind"] == "dev" else set())
            if dependency["name"] not in fine:
                wrong.append(f"{name} may not name {dependency['name']} ({dependency['kind'] or 'normal'})")
        problems += wrong
        passed += not wrong

    for package in metadata["packages"]:
        if package["id"] in members:
            continue
        licence = package["license"]
        if licence and allowed(licence):
            passed += 1
        else:
            problems.append(f"{package['name']} {package['version']}: licence {licence!r} is not among the allowed")

    for name, package in sorted(ours.items()):
        root = pathlib.Path(package["manifest_path"]).parent
        outside = [
            str(path.relative_to(root)) for path in sorted((root / "src").rglob("*.rs"))
            if "sys" not in path.relative_to(root).parts and path.stem != "sys"
            and re.search(r"\bunsafe\s*(\{|fn|impl)", path.read_text())
        ]
        if outside:
            problems.append(f"{name}: unsafe code outside its sys module: {', '.join(outside)}")
        else:
            passed += 1

    for problem in problems:
        print(f"FAILED: {problem}")
    print(f"workspace: {passed} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
