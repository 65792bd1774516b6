"""The command `fledgling`: one file per verb, each imported only when it is called.

Start at `COMMANDS`, then open the file of a verb. A verb parses its arguments, calls functions of other packages and
prints: results on stdout, progress on stderr. Commands in files of their own: eval_*.py, inspect.py and overlap.py (of
`data`), inference.py (of `scaling`), learn.py (of `bench`). What several verbs share: options.py, lists.py, listen.py
(the address of a server), mcp.py, training_exit.py, terminal_input.py and escape.py (text for a terminal).

`--help` imports no torch. Exit codes are those of `runtime/exit_codes.py` (0 done, 1 failed, 2 usage, 75 stopped and
saved, ...). A user's mistake is one line on stderr, never a traceback.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

from fledgling.config import UserError, did_you_mean
from fledgling.runtime.exit_codes import BROKEN_PIPE, FAILED, INTERRUPTED, USAGE_ERROR
from fledgling.runtime.interrupts import interrupt_between_imports

if TYPE_CHECKING:
    from cyclopts import App, Token

# verb: (attribute of fledgling.cli.<verb>, help in one line). A group exports `app`, a single verb a function of its
# own name; "module:attribute" where a verb's name cannot be a module's. The line of a group ends with its commands.
COMMANDS = {
    "speedrun": ("speedrun", "All stages of a recipe, in order; run it again to resume where it stopped."),
    "plan": (
        "app",
        "Parameters, FLOPs, memory, hours and cost of a recipe, before anything runs; also: devices, compare.",
    ),
    "data": ("app", "Inspect, fetch and prepare training text: info, fetch, prepare, inspect, overlap."),
    "tokenizer": ("app", "Train, evaluate and show a tokenizer: train, eval, show."),
    "train": ("train", "One stage of a recipe: pretrain, midtrain, sft, dpo or rl."),
    "verify": ("verify", "Show that a run's weights come from its recipe and text: files, figures, steps replayed."),
    "checkpoint": ("app", "Check the checkpoints of a run, file by file: verify."),
    "eval": ("app", "Measure a checkpoint, or compare two logs: bpb, core, compare, chat, passk, needle, lm-eval."),
    "chat": ("chat", "Chat with a checkpoint."),
    "serve": ("serve", "Serve a checkpoint through an OpenAI-compatible API, and a chat page."),
    "export": ("app", "A checkpoint as files that other programs load: hf, gguf, mlx, onnx, html, adapter, push."),
    "quantize": ("quantize", "A checkpoint in 8 or 4 bits, which every verb but train and export accepts."),
    "distill": ("distill", "A teacher's answers to the prompts of a source, as conversations that sft learns from."),
    "import": ("import_:import_", "A Hugging Face directory or a GGUF file as a checkpoint that every verb accepts."),
    "scaling": ("app", "How the loss scales with size, data, compute: run, fit, predict, check, recover, inference."),
    "watch": ("watch", "A live page of runs: charts, samples, evaluations, and buttons that stop and sample."),
    "report": ("report", "A run directory as one self-contained page."),
    "bench": ("app", "Speed next to its physical limit on this machine: train, infer, gpu, learn."),
    "config": ("app", "List recipes, and show one with all defaults: list, show."),
    "doctor": ("doctor", "What this machine has for training, and how to get what it lacks."),
}

# what a command was -> what it is: experiments on single parts are outside the package
PARTS = {  # of commands: what is also called by its name alone
    "data": ("fetch", "inspect", "prepare"),
    "eval": ("bpb", "compare", "core", "needle", "passk"),
    "export": ("adapter", "gguf", "hf", "html", "mlx", "onnx", "push"),
}
RENAMED_COMMANDS = {
    "lab": "fledgling scaling",
    "bench comm": "python -m benchmarks comm",
    "bench core": "python -m benchmarks core",
    "bench memory": "python -m benchmarks memory",
    "bench norms": "python -m benchmarks norms",
    "bench optim": "python -m benchmarks optim",
    "bench rollouts": "python -m benchmarks rollouts",
    "bench sandbox": "python -m benchmarks sandbox",
    "bench save": "python -m benchmarks save",
    "bench scaling": "python -m benchmarks scaling",
    "bench sparsity": "python -m benchmarks sparsity",
    "bench tokenizer": "python -m benchmarks tokenizer",
    "bench guesses": "python -m benchmarks prompt-lookup",
}

# command -> old option -> option
RENAMED_OPTIONS = {
    "chat": {"--max-tokens": "--max-new-tokens"},
    "quantize": {"--group": "--group-size"},
    "scaling inference": {"--hold": "--hold-out"},
    "serve": {
        "--key": "--api-key",
        "--name": "--model-name",
        "--rows": "--max-batch-size",
        "--queue": "--max-queue-size",
        "--chunk": "--prefill-chunk",
        "--keep": "--prefix-cache-tokens",
        "--lookahead": "--num-speculative-tokens",
        "--lookahead-tokens": "--num-speculative-tokens",
    },
    "tokenizer train": {
        "--digits": "--max-digits",
        "--letters": "--letter-tokens",
        "--no-letters": "--no-letter-tokens",
        "--characters": "--max-characters",
    },
}


def build_app(called: str | None = None) -> App:
    """Returns the command-line app. The verb `called` shows its own help, the others their line in COMMANDS."""
    from cyclopts import App, Parameter

    from fledgling import __version__

    app = App(
        name="fledgling",
        version=__version__,
        help="Train a chat model of your own, from raw text to conversation.",
        help_epilogue=None if called else "Start with: fledgling speedrun quickstart",
        default_parameter=Parameter(negative_iterable=(), converter=convert_value),
        suppress_keyboard_interrupt=False,  # `main` says that it was one
    )
    for position, (verb, (attribute, line)) in enumerate(COMMANDS.items()):
        help_line = None if verb == called else line
        target = attribute if ":" in attribute else f"{verb}:{attribute}"
        app.command(f"fledgling.cli.{target}", name=verb, help=help_line, sort_key=position)
    return app


def convert_value(type_: Any, tokens: Sequence[Token]) -> Any:
    """Returns the value of an option. Raises ValueError for a whole number with a fraction, which would be rounded."""
    from cyclopts import convert

    if int in (type_, *get_args(type_)) and float not in get_args(type_):
        for token in tokens:
            if "." in token.value:
                raise ValueError(f"got {token.value}; expected a whole number")
    return convert(type_, tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process) and returns its exit code."""
    from cyclopts import CycloptsError, UnknownOptionError, UnusedCliTokensError

    interrupt_between_imports()
    argv = list(sys.argv[1:] if argv is None else argv)
    called = argv[0] if argv and argv[0] not in ("--help", "-h", "--version") else None
    for words in (" ".join(argv[:1]), " ".join(argv[:2])):
        if new := RENAMED_COMMANDS.get(words):
            where = " (in a checkout of the project)" if "benchmarks" in new else ""
            return _fail(f'command "{words}" was renamed to `{new}`{where}', USAGE_ERROR)
    if called and called not in COMMANDS:  # cyclopts would import every verb to find out
        part = next((f' - did you mean "{verb} {called}"?' for verb, names in PARTS.items() if called in names), "")
        hint = part or did_you_mean(called, COMMANDS) or f": there are {', '.join(COMMANDS)}"
        return _fail(f'unknown command "{called}"{hint}', USAGE_ERROR)
    try:
        with show_own_warnings():
            app = build_app(called)
            result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if type(result) is int else 0
    except CycloptsError as error:
        command = " ".join(error.command_chain or ([called] if called else []))
        message = " ".join(str(error).split())
        if isinstance(error, UnknownOptionError):
            option = (error.token.keyword or error.token.value).partition("=")[0]
            if new := RENAMED_OPTIONS.get(command, {}).get(option):
                message = f"option {option} was renamed to {new}"
        if isinstance(error, UnusedCliTokensError):
            message = describe_unused_words(error.unused_tokens or [])
        return _fail(f"{message} (see fledgling {f'{command} ' if command else ''}--help)", USAGE_ERROR)
    except UserError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `fledgling plan | head -1`: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def describe_unused_words(words: Sequence[str]) -> str:
    """Returns a line about words that no option or argument takes; settings need an option each."""
    left = f"no argument or option takes {' '.join(words)}"
    settings = " ".join(f"--set {word}" for word in words if "=" in word and not word.startswith("-"))
    return f"{left}: repeat the option, {settings}" if settings else left


@contextmanager
def show_own_warnings() -> Iterator[None]:
    """Shows a warning of this package as one line, without the source line that Python adds, during the block."""
    default = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **options: Any) -> None:
        if os.path.dirname(os.path.dirname(__file__)) in filename:
            print(f"warning: {message}", file=sys.stderr)
        else:
            default(message, category, filename, *rest, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = default


def _fail(message: str, code: int) -> int:
    """Prints one line on stderr and returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code
