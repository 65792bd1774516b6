"""Lists the stops of a value on its way through the package: `python -m tests.invariants.walk WHAT [CHECKOUT]`.

WHAT is one of three, and each has its rule, which reads the sources alone:

    rl.algorithm    a key of the recipe. A stop is a line that reads the field: an attribute of this name of a value
                    whose class is the table's (that of `Recipe.rl`), or a class that is built with a keyword of this
                    name from such a read (so a copy of the setting is followed).
    Batch           a class. A stop is a function that takes or returns it, by its annotations, or constructs it.
    infer:prompt    a name in a package. A stop is a function of the package that has a parameter of this name (or its
                    plural) or reads an attribute of it.

The class of an expression is inferred from annotations of parameters, fields and results, from constructors, from
assignments of these, from `replace`, and from iteration over annotated containers. A read that needs more than that
(`getattr` with a computed name, `**vars(config)`) is no stop. CHECKOUT is the root of another working tree, so that two
trees are counted by one rule (default: this one).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.invariants.structure import ROOT, read_sources

CONTAINERS = {"Sequence", "list", "tuple", "Iterable", "Iterator", "Generator", "set", "frozenset", "Collection"}
MAPPINGS = {"dict", "Mapping", "MutableMapping"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Kind:
    """A class of the package, or a container whose elements are of it."""

    name: str
    is_container: bool = False


Kinds = frozenset[Kind]
NONE: Kinds = frozenset()


@dataclass
class Tree:
    """The parsed sources of a package: fields of each class, what its functions return, and names of unions."""

    modules: dict[str, ast.Module]
    fields: dict[str, dict[str, Kinds]] = field(default_factory=dict)  # class -> attribute or method -> kinds
    results: dict[str, Kinds] = field(default_factory=dict)  # function of a module -> kinds
    unions: dict[str, ast.expr] = field(default_factory=dict)  # `Table = RLConfig | DPOConfig`

    @classmethod
    def read(cls, sources: dict[str, str]) -> Tree:
        """Parses sources: {module name: text}."""
        tree = cls({module: ast.parse(text) for module, text in sources.items()})
        nodes = [node for module in tree.modules.values() for node in module.body]
        classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
        tree.fields = {node.name: {} for node in classes}
        for node in nodes:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.BinOp)
                and isinstance(node.value.op, ast.BitOr)
            ):
                tree.unions[ast.unparse(node.targets[0])] = node.value
        for node in nodes:
            if isinstance(node, Function):
                tree.results[node.name] = tree.of_annotation(node.returns)
        for node in classes:
            for entry in node.body:
                if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                    tree.fields[node.name][entry.target.id] = tree.of_annotation(entry.annotation)
                elif isinstance(entry, Function):
                    tree.fields[node.name][entry.name] = tree.of_annotation(entry.returns)
        for node in classes:  # self.x = ..., from parameters and from the fields above
            for entry in (entry for entry in node.body if isinstance(entry, Function) and sets_attributes(entry)):
                names = tree.names_in(entry, node.name)
                for part in ast.walk(entry):
                    for target, kinds in tree.assigned(part, names):
                        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and kinds:
                            tree.fields[node.name][target.attr] = kinds
        return tree

    def of_annotation(self, node: ast.expr | None) -> Kinds:
        """Returns the classes of this package that an annotation names, through unions, quotes and containers."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in self.unions:
                return self.of_annotation(self.unions[name])
            return frozenset([Kind(name)]) if name in self.fields else NONE
        if isinstance(node, ast.BinOp):
            return self.of_annotation(node.left) | self.of_annotation(node.right)
        if isinstance(node, ast.Subscript):
            outer = ast.unparse(node.value).split(".")[-1]
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if outer in CONTAINERS | MAPPINGS:
                found = self.of_annotation(parts[-1] if outer in MAPPINGS else parts[0])
                return frozenset(Kind(kind.name, True) for kind in found)
        return NONE

    def names_in(self, function: Function, owner: str | None) -> dict[str, Kinds]:
        """Returns the kinds of a function's parameters and local variables; owner: its class."""
        names = {argument.arg: self.of_annotation(argument.annotation) for argument in arguments_of(function)}
        names |= {"self": frozenset([Kind(owner)]), "cls": frozenset([Kind(owner)])} if owner else {}
        for _ in range(2):  # a variable may be assigned from one that the walk meets later
            for node in ast.walk(function):
                for target, kinds in self.assigned(node, names):
                    if isinstance(target, ast.Name) and kinds:
                        names[target.id] = names.get(target.id, NONE) | kinds
        return names

    def assigned(self, node: ast.AST, names: dict[str, Kinds]) -> Iterator[tuple[ast.expr, Kinds]]:
        """Yields each target of an assignment, a loop or an isinstance, with its kinds."""
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    values = [self.of(value, names) for value in node.value.elts]
                    yield from zip(target.elts, values, strict=False)
                else:
                    yield target, self.of(node.value, names)
        elif isinstance(node, ast.AnnAssign):
            yield node.target, self.of_annotation(node.annotation)
        elif isinstance(node, ast.NamedExpr):
            yield node.target, self.of(node.value, names)
        elif isinstance(node, ast.For | ast.comprehension):
            yield node.target, elements(self.of(node.iter, names))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and len(node.args) == 2:
            yield node.args[0], self.of_annotation(node.args[1])

    def of(self, node: ast.expr | None, names: dict[str, Kinds]) -> Kinds:
        """Returns the classes of an expression, none where they are not known."""
        if isinstance(node, ast.Name):
            return names.get(node.id, NONE)
        if isinstance(node, ast.Attribute):
            owners = [kind for kind in self.of(node.value, names) if not kind.is_container]
            return frozenset().union(*(self.fields[kind.name].get(node.attr, NONE) for kind in owners))
        if isinstance(node, ast.Subscript):
            return elements(self.of(node.value, names))
        if isinstance(node, ast.IfExp | ast.BoolOp):
            choices = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            return frozenset().union(*(self.of(choice, names) for choice in choices))
        if isinstance(node, ast.Call):
            called = node.func
            if not isinstance(called, ast.Name):
                return self.of(called, names)  # a method: its result is kept under its name
            if called.id == "replace" and node.args:
                return self.of(node.args[0], names)
            return frozenset([Kind(called.id)]) if called.id in self.fields else self.results.get(called.id, NONE)
        return NONE

    def functions(self) -> Iterator[tuple[str, str | None, Function]]:
        """Yields (module, class or None, function) of every function, nested ones as part of the outer one."""
        for module, tree in self.modules.items():
            for node in tree.body:
                if isinstance(node, Function):
                    yield module, None, node
                elif isinstance(node, ast.ClassDef):
                    yield from ((module, node.name, part) for part in node.body if isinstance(part, Function))


def arguments_of(function: Function) -> list[ast.arg]:
    """Returns the parameters of a function, without *args and **kwargs."""
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def sets_attributes(function: Function) -> bool:
    """Returns whether a function assigns to an attribute of anything."""
    return any(isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) for node in ast.walk(function))


def reads_attribute(function: Function, name: str) -> bool:
    """Returns whether a function reads an attribute of this name of anything."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load)
        for node in ast.walk(function)
    )


def elements(kinds: Kinds) -> Kinds:
    """Returns the kinds of the elements of containers."""
    return frozenset(Kind(kind.name) for kind in kinds if kind.is_container)


def walk_key(tree: Tree, table: str, key: str) -> list[tuple[str, int]]:
    """Returns (module, line) of every read of a recipe's key.

    Raises:
        KeyError: the recipe has no such table, or the table no such key.
    """
    classes = {kind.name for kind in tree.fields["Recipe"][table]}
    if not any(key in tree.fields[name] for name in classes):
        raise KeyError(key)
    readers = [entry for entry in tree.functions() if reads_attribute(entry[2], key)]
    names = [(module, function, tree.names_in(function, owner)) for module, owner, function in readers]
    while True:
        reads, copies = set(), set(classes)
        for module, function, known in names:
            for node in ast.walk(function):
                if is_read(tree, node, key, classes, known):
                    reads.add((module, node.lineno))
                elif isinstance(node, ast.Call) and any(
                    word.arg == key and any(is_read(tree, part, key, classes, known) for part in ast.walk(word.value))
                    for word in node.keywords
                ):
                    copies |= {kind.name for kind in tree.of(node, known)}
        if copies == classes:
            return sorted(reads)
        classes = copies


def is_read(tree: Tree, node: ast.AST, key: str, classes: set[str], names: dict[str, Kinds]) -> bool:
    """Returns whether a node reads the attribute `key` of a value of one of `classes`."""
    if not (isinstance(node, ast.Attribute) and node.attr == key and isinstance(node.ctx, ast.Load)):
        return False
    return any(kind.name in classes and not kind.is_container for kind in tree.of(node.value, names))


def walk_class(tree: Tree, name: str) -> list[tuple[str, int]]:
    """Returns (module, line) of every function that takes, returns or constructs a class.

    Raises:
        KeyError: there is no such class.
    """
    if name not in tree.fields:
        raise KeyError(name)
    found = set()
    for module, _, function in tree.functions():
        annotations = [argument.annotation for argument in arguments_of(function)] + [function.returns]
        calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
        if any(mentions(node, name) for node in (*annotations, *calls) if node is not None):
            found.add((module, function.lineno))
    return sorted(found)


def mentions(node: ast.expr, name: str) -> bool:
    """Returns whether an annotation or the function of a call names a class, inside quotes too."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def walk_name(tree: Tree, package: str, name: str) -> list[tuple[str, int]]:
    """Returns (module, line) of every function of a package that takes `name` or its plural, or reads an attribute."""
    found = set()
    for module, _, function in tree.functions():
        if module.split(".")[0] != package:
            continue
        arguments = {argument.arg for argument in arguments_of(function)}
        if {name, f"{name}s"} & arguments or any(reads_attribute(function, word) for word in (name, f"{name}s")):
            found.add((module, function.lineno))
    return sorted(found)


def walk(tree: Tree, what: str) -> list[tuple[str, int]]:
    """Returns the stops (module, line) of what is named as on the command line."""
    if ":" in what:
        return walk_name(tree, *what.split(":", 1))
    return walk_key(tree, *what.split(".", 1)) if "." in what else walk_class(tree, what)


def format_stops(what: str, stops: Iterable[tuple[str, int]], checkout: Path) -> str:
    """Returns the stops as lines `file:line`, and how many there are in how many files."""
    lines, files = [], set()
    for module, line in stops:
        path = Path("fledgling", *module.split("."))
        path = path / "__init__.py" if (checkout / path).is_dir() else path.with_suffix(".py")
        files.add(path)
        lines.append(f"{path}:{line}")
    return "\n".join([*lines, f"{what}: {len(lines)} stops in {len(files)} files"])


def main() -> None:
    """Prints the stops of what the command line names."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python -m tests.invariants.walk WHAT [CHECKOUT], for example rl.algorithm")
    checkout = Path(sys.argv[2]) if len(sys.argv) == 3 else ROOT
    try:
        stops = walk(Tree.read(read_sources(checkout / "fledgling")), sys.argv[1])
    except KeyError as error:
        raise SystemExit(
            f"{sys.argv[1]}: {checkout} has no {error}, expected table.key, a class or package:name"
        ) from None
    print(format_stops(sys.argv[1], stops, checkout))


if __name__ == "__main__":
    main()
