"""`fledgling chat` on the checkpoint of a model whose answers are known."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from fledgling.cli import main
from fledgling.cli.chat import DIM, RESET, print_reply, run_conversation
from fledgling.cli.escape import escape_control_characters
from fledgling.cli.terminal_input import input_history, read_message
from fledgling.config import ModelConfig
from fledgling.infer import chat_session
from fledgling.infer.chat_session import ChatSession
from fledgling.infer.engine import Engine
from fledgling.infer.runner import ModelRunner
from fledgling.infer.sampling import SamplingParams
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import save_checkpoint
from fledgling.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_new_tokens=32)
ANSWER = "=[2+3 = 5]!\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    """A model that answers everything with "=", a tool call and "!": blocks add nothing, the head is a lookup table."""
    t = tokenizer
    steps = [t.assistant_start, *map(ord, "="), t.python_start, *map(ord, "2+3"), t.python_end]
    successors = dict(zip(steps, steps[1:], strict=False)) | {t.output_end: ord("!")}  # noqa: RUF007
    model = Transformer(ModelConfig(t.vocab_size, 1, 336, 4, 4, context=64))
    model.initialize(0)
    model.embedding.weight.data = torch.eye(t.vocab_size, 336)
    for token in range(t.vocab_size):
        model.head.weight.data[successors.get(token, t.assistant_end), token] = 1.0
    return model


@pytest.fixture(scope="module")
def checkpoint(tokenizer, model, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("run") / "sft"
    files = {"tokenizer.json": tokenizer.save(place / "made" / "tokenizer.json")}
    return save_checkpoint(
        place / "checkpoints", 3, {"model": model.state_dict()}, {"model": model.config.to_dict()}, files
    )


@pytest.fixture
def session(tokenizer, model) -> ChatSession:
    return ChatSession(Engine(model, tokenizer))


def test_one_prompt_is_answered_and_the_command_ends(checkpoint, capsys) -> None:
    assert main(["chat", str(checkpoint), "-p", "add", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == ANSWER


def test_a_temperature_that_the_server_rejects_is_rejected(checkpoint, capsys) -> None:
    assert main(["chat", str(checkpoint), "-p", "add", "--temperature", "5"]) == 1
    assert "temperature = 5.0: expected at most 2" in capsys.readouterr().err


def test_standard_input_is_the_prompt(checkpoint, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("add\n"))
    assert main(["chat", str(checkpoint), "--temperature", "0"]) == 0
    assert capsys.readouterr().out == ANSWER
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", str(checkpoint)]) == 1
    assert "standard input is empty" in capsys.readouterr().err


def test_errors_are_one_line(checkpoint, capsys, tmp_path) -> None:
    assert main(["chat", str(tmp_path / "nowhere"), "-p", "x"]) == 1
    assert main(["chat", str(checkpoint), "-p", "x", "--top-p", "3"]) == 1
    assert main(["chat", str(checkpoint), "-p", "long " * 200, "--temperature", "0"]) == 1
    captured = capsys.readouterr()
    assert captured.out.strip() == "" and captured.err.count("\n") == 3 and "Traceback" not in captured.err


def test_a_conversation_obeys_its_commands(session, capsys, monkeypatch) -> None:
    typed = iter(["add", "/clear", "/what\x1b[2J", "/help", "", "add", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert run_conversation(session, GREEDY, out := io.StringIO()) == 0
    assert out.getvalue().count(ANSWER) == 2 and "/clear" in out.getvalue() and "\x1b" not in out.getvalue()
    assert len(session.turns) == 1


def test_again_set_and_history_do_what_help_says(session, monkeypatch) -> None:
    typed = iter(["/again", "add", "/set temperature 0", "/set top_p 7", "/set nothing 1", "/set seed x", "/again"])
    typed = iter([*typed, "/set temperature 5", "/history", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    out = io.StringIO()
    assert run_conversation(session, GREEDY, out) == 0
    shown = out.getvalue()
    assert (
        shown.startswith("there is no message to answer again") and shown.count(ANSWER) == 3 and len(session.turns) == 1
    )
    assert "temperature 0.0" in shown and "top_p = 7.0: expected a share" in shown and "top_p 1.0" in shown
    assert "temperature = 5.0: expected at most 2, as in the server\ntemperature 0.0" in shown
    assert "expected /set and one of temperature" in shown and "seed: got x, expected a number" in shown
    assert shown.endswith(f"user: add\nassistant: {ANSWER}")


def test_a_text_of_several_lines_is_one_message(session, monkeypatch) -> None:
    typed = iter(["a\\", "b\\", "c", '"""', "  d", "", 'e"""', '"""f"""', "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert run_conversation(session, GREEDY, io.StringIO()) == 0
    assert [turn.user_text for turn in session.turns] == ["a\nb\nc", "d\n\ne", "f"]


def test_ctrl_c_in_a_text_of_several_lines_does_not_exit() -> None:
    typed = iter(['"""', "half", KeyboardInterrupt, "whole"])

    def ask(_: str) -> str:
        line = next(typed)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    assert [read_message(ask), read_message(ask)] == ["", "whole"]


def test_the_input_history_is_stored_and_private(tmp_path) -> None:
    readline = pytest.importorskip("readline")
    history = tmp_path / "state" / "history"
    with input_history(history):
        readline.add_history("What is 2 + 3?")
    assert "What is 2 + 3?" in history.read_text() and history.stat().st_mode & 0o077 == 0
    readline.clear_history()
    with input_history(history):
        assert readline.get_history_item(readline.get_current_history_length()) == "What is 2 + 3?"


def test_ctrl_c_stops_the_answer_only(session, monkeypatch) -> None:
    calls, extend_cache = [0], ModelRunner.extend_cache

    def interrupted(self, *arguments):
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return extend_cache(self, *arguments)

    monkeypatch.setattr(ModelRunner, "extend_cache", interrupted)
    assert print_reply(session, "add", GREEDY, out := io.StringIO(), out) == "interrupted"
    assert out.getvalue() == "=[2]\n"
    assert print_reply(session, "add", GREEDY, out := io.StringIO(), out) == "stop"
    assert out.getvalue() == ANSWER and len(session.turns) == 2


def test_a_thought_is_apart_from_the_answer_and_not_in_a_file_of_it(session, monkeypatch) -> None:
    monkeypatch.setattr(chat_session, "begins_thought", lambda tokenizer, prompt: True)
    out, notices = io.StringIO(), io.StringIO()
    assert print_reply(session, "add", GREEDY, out, notices) == "stop"
    assert (out.getvalue(), notices.getvalue()) == ("[2+3 = 5]\n", "=!")
    (terminal := io.StringIO()).isatty = lambda: True
    print_reply(session, "add", GREEDY, terminal, notices)
    assert terminal.getvalue().replace(RESET, "").replace(DIM, "") == "[=]\n[2+3 = 5][!]\n\n"


def test_control_characters_are_escaped() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 a\rb\x9b1m \u202eabc\u2066 \x7f\n\tok é 漢 👩‍💻"
    shown = escape_control_characters(hostile)
    assert shown == "␛[2J␛]0;title␇ a␍b\\x9b1m \\u202eabc\\u2066 ␡\n\tok é 漢 👩‍💻"
