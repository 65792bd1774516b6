"""The structure of the package, read from its sources: packages, layers, imports, cycles, lines.

`python -m tests.invariants.structure` prints it as a table (or, with --json, as values). The tests in
`test_layers.py` and `test_descriptions.py` hold the sources and the documentation to it.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fledgling"
LAYERS = (
    ("config", "files", "runtime", "record"),
    ("text", "model", "sandbox"),
    ("kernels", "data", "corpora", "optim"),
    ("plan", "export", "tasks", "report"),
    ("infer",),
    ("evals", "serve"),
    ("train",),
    ("bench", "scaling", "speedrun", "verify", "watch"),
    ("cli",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
SIDEWAYS = {("corpora", "data")}  # the only imports inside a layer above 0: prepared text becomes token shards


def read_sources(package: Path = PACKAGE) -> dict[str, str]:
    """Returns module name (without `fledgling.`) -> source; a package's own name is its `__init__`."""
    sources = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def package_of(module: str) -> str:
    """Returns the first part of a module's name: `model.attention` -> `model`."""
    return module.split(".")[0]


def imported_names(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Returns the dotted names that an import statement of `module` brings in, relative ones resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start: list[str] = []
        if node.level:
            parts = ["fledgling", *module.split(".")]
            start = parts[: len(parts) - node.level + is_package]
        return [".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return []


def imported_modules(module: str, sources: dict[str, str], at_import: bool = False) -> list[tuple[str, int]]:
    """Returns (module or package inside fledgling, line) for every import of one module.

    at_import: leaves out imports inside functions and under TYPE_CHECKING.
    """
    names = dotted_imports(module, sources, at_import)
    inside = [(name.removeprefix("fledgling."), line) for name, line in names if name.startswith("fledgling.")]
    return [(name if name in sources else name.rpartition(".")[0] or name, line) for name, line in inside]


def dotted_imports(module: str, sources: dict[str, str], at_import: bool = False) -> tuple[tuple[str, int], ...]:
    """Returns (dotted name, line) for every import of one module, of other libraries too."""
    is_package = any(name.startswith(f"{module}.") for name in sources)
    return _read_imports(module, sources[module], is_package, at_import)


@cache  # parsing the package takes a second, and several tests read its imports
def _read_imports(module: str, source: str, is_package: bool, at_import: bool) -> tuple[tuple[str, int], ...]:
    found, waiting = [], list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        found += [(name, getattr(node, "lineno", 0)) for name in imported_names(node, module, is_package)]
        waiting += ast.iter_child_nodes(node)
    return tuple(found)


def upward_imports(sources: dict[str, str]) -> list[str]:
    """Returns the imports that go up a layer, or inside a layer without being listed in SIDEWAYS."""
    breaches = []
    for module in sources:
        package = package_of(module)
        if package in ("", "__main__"):
            continue
        for name, line in imported_modules(module, sources):
            other = package_of(name)
            if other == package or other.startswith("__"):
                continue
            if package not in LAYER or other not in LAYER:
                breaches.append(f"{module}:{line}: no layer is known for {package} or {other}")
            elif LAYER[other] > LAYER[package] or (
                LAYER[other] == LAYER[package] != 0 and (package, other) not in SIDEWAYS
            ):
                breaches.append(f"{module}:{line}: {package} (layer {LAYER[package]}) imports {other}")
    return breaches


def import_cycles(sources: dict[str, str]) -> list[list[str]]:
    """Returns the groups of modules, and of packages, that import each other, in functions and for types too."""
    graph = {m: sorted({n for n, _ in imported_modules(m, sources) if n in sources and n != m}) for m in sources}
    for module, targets in graph.items():  # a package's __init__ re-exports: importing the package is no cycle
        graph[module] = [target for target in targets if not module.startswith(f"{target}.")]
    packages: dict[str, set[str]] = {package_of(module): set() for module in graph}
    for module, targets in graph.items():
        packages[package_of(module)] |= {package_of(target) for target in targets} - {package_of(module), ""}
    return find_cycles(graph) or find_cycles({name: sorted(others) for name, others in packages.items()})


def find_cycles(graph: dict[str, list[str]]) -> list[list[str]]:
    """Returns the groups of nodes that reach each other in a graph (node -> the nodes that it leads to)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(module: str) -> None:  # Tarjan 1972: strongly connected components
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in graph[module]:
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                cycles.append(sorted(component))

    for module in graph:
        if module not in order:
            visit(module)
    return cycles


def torch_at_import(sources: dict[str, str], torch_free: Iterable[str]) -> list[str]:
    """Returns the modules of `torch_free` whose import loads torch, directly or through others."""
    reached: dict[str, bool] = {}

    def reaches(module: str) -> bool:
        if module not in reached:
            reached[module] = False
            names = [name for name, _ in dotted_imports(module, sources, at_import=True)]
            inner = [name for name, _ in imported_modules(module, sources, at_import=True) if name in sources]
            reached[module] = any(package_of(n) == "torch" for n in names) or any([reaches(n) for n in inner])
        return reached[module]

    chosen = [m for m in sources if any(m == name or m.startswith(f"{name}.") for name in torch_free)]
    return [module for module in chosen if reaches(module)]


def backward_calls(sources: dict[str, str]) -> list[str]:
    """Returns the calls of `.backward()` outside the one training loop."""
    return [
        f"{module}:{node.lineno}"
        for module, text in sources.items()
        if module != "train.loop" and "backward" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    ]


def count_lines(sources: dict[str, str]) -> dict[str, int]:
    """Returns the lines of each package; modules outside of packages are left out."""
    return {
        package: sum(text.count("\n") for module, text in sources.items() if package_of(module) == package)
        for packages in LAYERS
        for package in packages
    }


def measure_structure() -> dict:
    """Returns lines and files of each package with its layer, and the counts of upward imports and cycles."""
    sources = read_sources()
    lines = count_lines(sources)
    rows = [
        {
            "layer": layer,
            "package": package,
            "files": sum(package_of(m) == package for m in sources),
            "lines": lines[package],
        }
        for layer, packages in reversed(list(enumerate(LAYERS)))
        for package in packages
    ]
    return {
        "packages": rows,
        "lines": sum(text.count("\n") for text in sources.values()),
        "upward_imports": len(upward_imports(sources)),
        "cycles": len(import_cycles(sources)),
    }


def main() -> None:
    """Prints the structure."""
    found = measure_structure()
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
        return
    for row in found["packages"]:
        print(f"{row['layer']}  {row['package']:10} {row['files']:3} files {row['lines']:6,} lines")
    print(f"{len(found['packages'])} packages, {len(LAYERS)} layers, {found['lines']:,} lines of Python, "
          f"{found['upward_imports']} upward imports, {found['cycles']} cycles")  # fmt: skip


if __name__ == "__main__":
    main()
