#!/usr/bin/env python3
"""House rules that no other tool checks: one line for each breach, exit code 1 if there is any.

Sources: each module says what it owns, unit tests lie in `mod test`, names say what a thing is. Dependencies: from crates.io
alone, under licences that go with ours.
"""

import json
import pathlib
import re
import subprocess
import sys

LICENCES = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "Unicode-3.0", "Zlib", "Unlicense", "ISC", "BSL-1.0", "0BSD"}
EMPTY_NAMES = re.compile(r"^(util|utils|common|helper|helpers|manager|misc|base)$")
ROOMS = ["guest", "vmm", "tests"]


def sources():
    """Breaches in the Rust sources."""
    for path in sorted(path for room in ROOMS for path in pathlib.Path(room).rglob("*.rs")):
        text = path.read_text()
        if not re.match(r"(#!\[[^\n]*\n)*//! ", text):
            yield f"{path}: does not start with `//!`: what it owns, what it does not, which thread runs it"
        if re.search(r"^\s*mod tests\b", text, re.M):
            yield f"{path}: unit tests lie in `mod test`"
        if any(EMPTY_NAMES.match(part) for part in [path.stem, *path.parts]):
            yield f"{path}: a name that says nothing"
        if not text.endswith("\n") or re.search(r"[ \t]$", text, re.M):
            yield f"{path}: white space at the end of a line, or no newline at the end"


def is_allowed(expression):
    """Whether an SPDX expression can be met with the allowed licences."""
    words = re.findall(r"[()]|[^\s()]+", re.sub(r"\s*/\s*", " OR ", expression))
    python = {"OR": "or", "AND": "and", "(": "(", ")": ")"}
    # `A WITH exception` is A with more permissions.
    kept = [word for i, word in enumerate(words) if word != "WITH" and (i == 0 or words[i - 1] != "WITH")]
    return eval(" ".join(python.get(word, str(word in LICENCES)) for word in kept), {"__builtins__": {}})


def dependencies():
    """Breaches of the dependencies."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]
    for package in json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]:
        name = f"{package['name']} {package['version']}"
        source = package["source"]
        if source is not None and source != "registry+https://github.com/rust-lang/crates.io-index":
            yield f"{name}: comes from {source}"
        licence = package["license"]
        if licence is None or not is_allowed(licence):
            yield f"{name}: licence {licence}"


breaches = [*sources(), *dependencies()]
print("\n".join(breaches) or "no breach")
sys.exit(bool(breaches))
