"""Settings of our chat that Anthropic's and Ollama's bodies lack: rejected by name where they ask for something."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import BaseModel

from fledgling.serve.schemas import BadRequest

OTHER_SETTINGS: tuple[str, ...] = (
    "n",
    "min_p",
    "repetition_penalty",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)
OTHER_SETTINGS += ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar")
OTHER_SETTINGS += ("logprobs", "response_format")
NEUTRAL_VALUES = {"n": 1, "repetition_penalty": 1, "repeat_penalty": 1}
NEUTRAL_VALUES |= {"min_p": 0, "presence_penalty": 0, "frequency_penalty": 0}


def reject_fields(body: BaseModel, names: Collection[str], hints: Mapping[str, str]) -> None:
    """Raises BadRequest for a field that the body's class lacks and that would change the answer.

    Args:
        body: a validated body that keeps its further fields.
        names: the fields.
        hints: what to use instead, of some.
    """
    for name, value in (body.model_extra or {}).items():
        asks_nothing = value is None or value is False or value in ("", [], {})
        if name in names and not asks_nothing and not (name in NEUTRAL_VALUES and value == NEUTRAL_VALUES[name]):
            hint = hints.get(name, "")
            raise BadRequest(f"{name}: not supported{'; ' if hint else ''}{hint}", name)
