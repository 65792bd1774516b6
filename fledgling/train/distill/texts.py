"""A teacher's answers to the prompts of a source, as conversations that a stage learns from (`chat:FILE`).

Answer i is a function of the teacher, the source and (seed, i), so a file that was interrupted is resumed, and is
the same file. Next to ANSWERS.jsonl, ANSWERS.json says what it was made from; another teacher, dtype, source or setting
is rejected. Answers that did not end are left out and counted. A prompt that comes again has another answer by other
random numbers; at temperature 0 it would have the same, so that no row of a source is read twice there.

Source: sequence-level distillation, Kim and Rush 2016, arXiv 1606.07947.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.infer.detokenizer import decode_parts
from fledgling.infer.engine import Engine
from fledgling.infer.request import Completion
from fledgling.infer.sampling import SamplingParams
from fledgling.record.jsonl import JsonlWriter, read_jsonl, write_json, write_text
from fledgling.record.run_lock import hold_lock
from fledgling.runtime.device import name_dtype
from fledgling.tasks.epoch_reader import EpochReader
from fledgling.tasks.task import ConversationSource
from fledgling.text.conversation import render_prompt

GROUP_SIZE = {"cpu": 64, "cuda": 512}  # prompts that are answered together, and written at once


@dataclass(frozen=True)
class AnswerSettings:
    """What the answers are a function of, besides teacher and source.

    count: answers; the rows of the source in its order, again and again, at temperature 0 once.
    """

    count: int
    seed: int = 0
    temperature: float = 0.7
    max_new_tokens: int = 256


@dataclass
class AnswerCounts:
    """The prompts that were read, and what became of them.

    prompts: different ones among those that are read in all; rows: of the source, 0 for an endless one.
    """

    read: int = 0
    written: int = 0
    unfinished: int = 0  # answers longer than max_new_tokens, or than the context has place for
    too_long: int = 0  # prompts that leave no place for an answer
    malformed: int = 0  # rows that are no conversation
    prompts: int = 0
    rows: int = 0

    def describe(self) -> str:
        """Returns the counts as one line."""
        left_out = f"{self.unfinished:,} answers did not end, {self.too_long:,} prompts were too long"
        left_out += f", {self.malformed:,} rows are no conversation" if self.malformed else ""
        prompts = f"{self.prompts:,} prompt{'s' * (self.prompts != 1)}"
        if self.read > self.prompts:
            passes = f" ({self.read / self.rows:,.4g} passes)" if self.rows else ""
            prompts = f"{self.read:,} answers to {prompts}{passes}"
        return f"{self.written:,} conversations of {prompts}; left out: {left_out}"


def write_answers(
    engine: Engine,
    identity: str,
    source: ConversationSource,
    settings: AnswerSettings,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnswerCounts:
    """Writes the answers of a teacher to `out`, one conversation a line; resumes where an earlier call was interrupted.

    Args:
        engine: of the teacher.
        identity: of the teacher, as `hash_model` gives it.
        progress: called with (prompts read, all).

    Raises:
        UserError: the file was made from something else, cannot be written, or no answer can be learned from.
    """
    rows = len(source)
    read = replace(settings, count=min(settings.count, rows)) if rows and settings.temperature == 0 else settings
    digest, prompts = _hash_prompts(source, read)
    made_by = {"teacher": identity, "dtype": name_dtype(engine.dtype)}
    facts = {**made_by, "source": source.name, **asdict(settings), "prompts": digest}
    with hold_lock(out.parent, f"{out.name}", remedy="choose a file in another directory"):
        counts = replace(_read_counts(out, out.with_suffix(".json"), facts), prompts=prompts, rows=rows)
        _write_answers(engine, source, read, out, facts, counts, progress)
        if not counts.written:
            for file in (out, out.with_suffix(".json")):
                file.unlink(missing_ok=True)
            raise UserError(
                f"{out} is not written, nothing can be learned from it: {counts.describe()}; expected a teacher that "
                "ends its answers, or a larger --max-new-tokens"
            )
    return counts


def _write_answers(
    engine: Engine,
    source: ConversationSource,
    settings: AnswerSettings,
    out: Path,
    facts: dict[str, Any],
    counts: AnswerCounts,
    progress: Callable[[int, int], None],
) -> None:
    """Writes what is missing, while no other process writes in the directory, and adds to `counts`.

    facts: what the file is of.
    """
    facts_file = out.with_suffix(".json")
    group_size = GROUP_SIZE.get(engine.device.type, GROUP_SIZE["cuda"])
    writer = JsonlWriter(out)
    try:
        while counts.read < settings.count:
            progress(counts.read, settings.count)
            indices = range(counts.read, min(counts.read + group_size, settings.count))
            for row in _answer_prompts(engine, source, settings, indices, counts):
                writer.append(row)
            writer.flush()
            counts.read = indices.stop
            write_json(facts_file, {**facts, "counts": asdict(counts)})
    finally:
        writer.close()
    progress(counts.read, settings.count)


def _hash_prompts(source: ConversationSource, settings: AnswerSettings) -> tuple[str, int]:
    """Returns a digest of the conversations that are answered, and how many prompts differ.

    A source that was edited has another digest.
    """
    digest, prompts = hashlib.sha256(), set[bytes]()
    for conversation in EpochReader(source, settings.seed, limit=settings.count):
        messages = conversation["messages"]
        digest.update(_to_bytes(messages) + b"\n")
        prompts.add(hashlib.sha256(_to_bytes(_cut_prompt(messages))).digest()[:16])
    return digest.hexdigest()[:32], len(prompts)


def _to_bytes(messages: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps(messages, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _cut_prompt(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the messages before the assistant's last one, which the teacher answers."""
    return messages[: max(n for n, message in enumerate(messages) if message["role"] == "assistant")]


def _read_counts(out: Path, facts_file: Path, facts: dict[str, Any]) -> AnswerCounts:
    """Returns how far an earlier call came, and removes the rows that it wrote after its last count."""
    if not facts_file.exists():
        if out.exists():
            raise UserError(f"{out} exists, and no {facts_file.name} next to it says from what; choose another file")
        return AnswerCounts()
    try:
        saved = json.loads(facts_file.read_text(encoding="utf-8"))
        counts = AnswerCounts(**saved.pop("counts"))
        different = [name for name in facts if saved[name] != facts[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{facts_file} does not say from what {out} was made; choose another file") from None
    if different:
        name = different[0]
        raise UserError(
            f"{out} was made with {name} {str(saved[name])[:60]}, now it is {str(facts[name])[:60]}: choose another "
            "file"
        )
    rows = read_jsonl(out)
    if len(rows) < counts.written:
        raise UserError(
            f"{out} has {len(rows):,} conversations, and {facts_file.name} counts {counts.written:,}: put the file "
            f"back, or delete {facts_file.name} and what is left of it, and all are generated again"
        )
    if len(rows) > counts.written:
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[: counts.written]))
    return counts


def _answer_prompts(
    engine: Engine, source: ConversationSource, settings: AnswerSettings, indices: range, counts: AnswerCounts
) -> list[dict[str, Any]]:
    """Returns the conversations of some prompts, and adds to the counts."""
    prompts, limit = [], engine.context - min(settings.max_new_tokens, engine.context // 2)
    reader = EpochReader(source, settings.seed, indices.start, limit=len(indices))
    for index, conversation in reader.iterate_numbered():
        messages = _cut_prompt(conversation["messages"])
        prompt = render_prompt(engine.tokenizer, {"messages": messages})
        if len(prompt) > limit:
            counts.too_long += 1
        else:
            prompts.append((index, messages, prompt))
    sampling = SamplingParams(
        temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed
    )
    answers = engine.generate(
        [prompt for *_, prompt in prompts], sampling, request_indices=[index for index, *_ in prompts]
    )
    rows = []
    for (_, messages, _), answer in zip(prompts, answers, strict=True):
        content = _read_content(engine, answer)
        if answer.finish_reason != "stop" or not content:
            counts.unfinished += 1
            continue
        rows.append({"messages": [*messages, {"role": "assistant", "content": content}]})
    counts.written += len(rows)
    counts.malformed += len(reader.left_out)
    return rows


def _read_content(engine: Engine, answer: Completion) -> str | list[dict[str, str]]:
    """Returns an answer as the content of a message: its text, or its parts where it called a tool."""
    parts = decode_parts(engine.tokenizer, answer.tokens)
    return "".join(part["text"] for part in parts) if all(part["type"] == "text" for part in parts) else parts
