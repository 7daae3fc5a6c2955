"""Starts one benchmark: `python -m benchmarks NAME [its arguments]`; without a name, lists them.

A benchmark is a module beside this one with `main(arguments: Sequence[str]) -> int`, which takes `--json FILE`.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def benchmarks() -> dict[str, str]:
    """Return name -> first line of its docstring, by name, without importing any."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def start(arguments: Sequence[str]) -> int:
    """Run the benchmark named first and return its exit code; 2 for a name there is none of."""
    known = benchmarks()
    name = arguments[0] if arguments else ""
    if name in known:
        return int(importlib.import_module(f"benchmarks.{name}").main(arguments[1:]))
    listing = "\n".join(f"  {entry:12} {meaning}" for entry, meaning in known.items()) or "  (none yet)"
    if name in {"", "-h", "--help"}:
        print(f"usage: scripts/bench NAME [--json FILE] ...\n{listing}")
        return 0
    print(f"there is no benchmark {name!r}; there are:\n{listing}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
