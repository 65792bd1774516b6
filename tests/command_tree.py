"""The commands of `fledgling`, each by its words, with what it takes."""

from collections.abc import Iterator

from fledgling.cli import COMMANDS, build_app


def iterate_commands() -> Iterator[tuple[tuple[str, ...], list]]:
    """Yields (words, arguments) of every command that does something by itself."""

    def walk(app, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list]]:
        if app.default_command is not None:
            yield words, list(app.assemble_argument_collection(parse_docstring=False))
        for name in app:
            if not name.startswith("-"):
                yield from walk(app[name], (*words, name))

    for verb in COMMANDS:
        yield from walk(build_app(verb)[verb], (verb,))
