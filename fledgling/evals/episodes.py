"""Answers that may be episodes: the tool of each question, and the text that its task scores.

A question of an environment (fledgling/tasks/environments) is answered with a tool of its own, one episode; its text is
a transcript of calls. Every other question is answered with the engine's tool; its text is the prose after the last
tool output. Exams, pass@k and reinforcement learning answer and read with these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fledgling.infer.detokenizer import decode_final_text, decode_parts
from fledgling.infer.tools import Tool
from fledgling.tasks.environments import EnvironmentTask
from fledgling.tasks.environments.environment import MAX_CALL_CHARACTERS, TOO_LONG_ERROR, write_transcript
from fledgling.tasks.task import Question, Task
from fledgling.text.tokenizer import Tokenizer


def make_tools(questions: Iterable[tuple[Task, Question]]) -> list[Tool | None]:
    """Returns the tool of each question: a new episode of an environment; None for the engine's own tool."""
    return [
        Tool(task.start(question).call, MAX_CALL_CHARACTERS, task.name) if isinstance(task, EnvironmentTask) else None
        for task, question in questions
    ]


def read_answers(tokenizer: Tokenizer, tasks: Sequence[Task], answers: Sequence[Sequence[int]]) -> list[str]:
    """Returns the text of each answer, given as token ids, that its task scores."""
    return [
        read_transcript(tokenizer, tokens)
        if isinstance(task, EnvironmentTask)
        else decode_final_text(tokenizer, tokens)
        for task, tokens in zip(tasks, answers, strict=True)
    ]


def locate_calls(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Returns the position of the last token of each call of an episode that was run, in its transcript's order."""
    too_long = [tokenizer.output_start, *tokenizer.encode(TOO_LONG_ERROR), tokenizer.output_end]
    return [
        i - 1
        for i, token in enumerate(tokens)
        if token == tokenizer.output_start and i and tokens[i - 1] == tokenizer.python_end
        if list(tokens[i : i + len(too_long)]) != too_long
    ]


def read_transcript(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """Returns the transcript of an episode: the calls that were run, and the prose after the last output.

    A call that was not answered, because the answer ended or the call was too long, is left out.
    """
    parts = decode_parts(tokenizer, tokens)
    calls, text = [], ""
    for before, part in zip([{"type": "", "text": ""}, *parts], parts, strict=False):
        if part["type"] == "output":
            text = ""
            if before["type"] == "python" and part["text"] != TOO_LONG_ERROR:
                calls.append(before["text"])
        elif part["type"] == "text":
            text += part["text"]
    return write_transcript(calls, text)
