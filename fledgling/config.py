"""Recipes: everything a run was told, as frozen dataclasses read strictly from TOML.

The one idea: a recipe is a value. A file and its overrides become one `Recipe`, checked whole before any work
starts, and `dump_toml` (toml.py) writes the very same value into the run directory, where it can be loaded again.

What it is not: it derives nothing. A field that is `None` is filled in by the dial (`fledgling.plan.horizon`)
or by the stage that reads it; this file only knows names, types and ranges. Floor 0.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Union

STAGES = ("pretrain", "midtrain", "sft", "dpo", "rl")
DEFAULT_STAGES = ("pretrain", "midtrain", "sft", "rl")  # those of a recipe that names none
RECIPES_DIR = Path(__file__).parent / "recipes"


class UserError(Exception):
    """A mistake of the user's in one line: given, expected, what to do. All else that escapes is a bug of ours."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` - did you mean "x"?` for the closest of `known`, or the empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' - did you mean "{close[0]}"?' if close else ""


# ---- fields: a default together with the range it must lie in ------------------------------------


def _count(default: int | None, low: int = 1) -> Any:
    """A whole number of at least `low`."""
    return field(default=default, metadata={"low": low})


def _number(default: float, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> Any:
    """A finite number in [low, high], or in (low, high] with `above`."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def _choice(default: str, *others: str) -> Any:
    """One of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


def _part(*names: str) -> Any:
    """One of a few words, or `None`: what the family has."""
    return field(default=None, metadata={"choices": names})


_WEIGHTS = {"low": 0.0}  # names with weights, relative to each other; none: the stage's own default


@dataclass(frozen=True)
class TokenizerConfig:
    """[tokenizer]: what the byte-level BPE vocabulary is trained on and how it splits."""

    vocab_size: int = _count(1024, 256)  # entries, the special tokens included
    max_characters: int = _count(2_000_000_000)  # at most so many characters of text are read
    max_digits: int = _count(1)  # longest group of digits that may become one token
    letter_tokens: bool = True  # each ASCII letter, and each after a space, has its own token
    sources: tuple[str, ...] = ("embedded",)  # names of corpora, or paths


@dataclass(frozen=True)
class ModelTable:
    """[model]: the architecture. `None` is derived from depth and family (`fledgling.model.config`)."""

    depth: int = _count(4)  # layers
    width: int | None = _count(None)  # C; None: 64 x depth
    heads: int | None = _count(None)  # H, query heads; None: width over the family's head width
    kv_heads: int | None = _count(None)  # key/value heads; None: as many as heads
    context: int = _count(256)  # T, tokens a row
    family: str = _choice("fledgling", "gpt2", "llama")
    intermediate_size: int | None = _count(None)  # width of the feed-forward
    norm: str | None = _part("rms", "rms_weighted", "layer")
    activation: str | None = _part("relu2", "gelu", "swiglu")
    tie_embeddings: bool | None = None  # embedding and head are one matrix
    qk_norm: bool | None = None  # queries and keys are normalized
    logit_softcap: float | None = _number(None)  # type: ignore[arg-type]  # softcap * tanh(logits / softcap); 0: none
    flash_norm: bool = False  # 1 / RMS is taken behind the products that read the stream (fledgling.model.flash_norm)
    value_embeddings: int = _count(0, 0)  # every n-th layer, from the last, adds a table by token to its values
    window_pattern: str = ""  # of S and L, repeated over the layers: S sees `window` tokens; the last layer sees all
    window_size: int | None = _count(None)  # tokens that S sees, itself included; None: a quarter of the context
    residual_scalars: bool = False  # each block reads a x + b x0, x0 the embedded token, a and b learned


@dataclass(frozen=True)
class OptimizerConfig:
    """[optimizer]: rates by role; Muon for the matrices, AdamW for embedding, head and scalars."""

    matrix_lr: float = _number(0.02, above=True)
    embedding_lr: float = _number(0.3, above=True)
    head_lr: float = _number(0.004, above=True)
    scalar_lr: float = _number(0.01, above=True)
    adam_betas: tuple[float, float] = field(default=(0.8, 0.95), metadata={"low": 0.0, "high": 0.9999})
    adam_eps: float = _number(1e-10, above=True)
    momentum: float = _number(0.95, 0.0, 0.9999)
    weight_decay: float = _number(0.0)  # of the blocks' matrices
    cautious_weight_decay: bool = False  # only of values that the update brings nearer to 0 anyway
    matrix_optimizer: str = _choice("muon", "normuon", "adamw")  # what moves the blocks' matrices
    newton_schulz: str = _choice("jordan", "polar_express")  # the coefficients of Muon's iteration
    newton_schulz_steps: int = _count(5)
    zero_stage: int | None = field(default=None, metadata={"low": 0, "high": 3})  # ZeRO; None: 1 with several ranks
    deterministic: str = _choice("auto", "on", "off")  # the same bits on 1, 2, 4, 8 ranks; auto: on a CPU


@dataclass(frozen=True)
class StageConfig:
    """[pretrain], [midtrain], [sft]: one stage's length, schedule, data and evaluations."""

    steps: int | None = _count(None)  # optimizer steps; None: the dial for pretraining, one pass for the others
    batch_tokens: int | None = _count(None)  # tokens of one step over all ranks; None: the dial
    micro_batch_size: int | None = _count(None)  # rows of one forward/backward on one rank; None: what fits
    learning_rate: float = _number(1.0, above=True)  # multiplies every rate of [optimizer]
    warmup_steps: int = _count(20, 0)  # steps from 0 to the full rate
    decay_fraction: float = _number(0.4, 0.0, 1.0)  # the last share of the steps, over which the rate falls
    final_lr_fraction: float = _number(0.0, 0.0, 1.0)  # the multiplier the fall ends at
    mixture: dict[str, float] = field(default_factory=dict, metadata=_WEIGHTS)  # source -> weight
    train_on: str = _choice("all", "assistant")  # which tokens are learned
    eval_every: int = _count(0, 0)  # steps; 0: only at the end
    eval_questions: int = _count(200)  # questions a task
    core_every: int = _count(0, 0)  # steps between evaluations of CORE, and one at the end; 0: none
    core_max_per_task: int = _count(500)  # items of each of its tasks
    sample_every: int = _count(0, 0)  # steps; 0: only at the end
    save_every: int = _count(0, 0)  # steps; 0: only at the end
    keep_checkpoints: int = _count(2)  # checkpoints kept


@dataclass(frozen=True)
class DPOConfig:
    """[dpo]: preference tuning on pairs of answers, the better one beside the worse."""

    pairs: str | None = None  # JSONL of {"prompt", "chosen", "rejected"}; None: no such stage
    beta: float = _number(0.1, above=True)  # how strongly the divergence from the stage's first weights is held
    batch_size: int = _count(16)  # pairs a step
    steps: int | None = _count(None)  # None: one pass over the pairs
    micro_batch_size: int | None = _count(None)
    learning_rate: float = _number(0.05, above=True)
    warmup_steps: int = _count(0, 0)
    decay_fraction: float = _number(1.0, 0.0, 1.0)
    final_lr_fraction: float = _number(0.0, 0.0, 1.0)
    mixture: dict[str, float] = field(default_factory=dict, metadata=_WEIGHTS)  # what it is examined in; none: sft's
    eval_every: int = _count(0, 0)
    eval_questions: int = _count(200)
    sample_every: int = _count(0, 0)
    save_every: int = _count(0, 0)
    keep_checkpoints: int = _count(2)


@dataclass(frozen=True)
class RLConfig:
    """[rl]: a stage whose batches are rollouts of the live weights, scored by tasks and rewards (GRPO, PPO)."""

    algorithm: str = _choice("grpo", "ppo")
    steps: int | None = _count(None)
    batch_tokens: int | None = _count(None)
    micro_batch_size: int | None = _count(None)
    learning_rate: float = _number(0.2, above=True)
    warmup_steps: int = _count(0, 0)
    decay_fraction: float = _number(1.0, 0.0, 1.0)
    final_lr_fraction: float = _number(0.0, 0.0, 1.0)
    mixture: dict[str, float] = field(default_factory=dict, metadata=_WEIGHTS)
    target: str = _choice("assistant", "all")
    eval_every: int = _count(0, 0)
    eval_questions: int = _count(200)
    sample_every: int = _count(0, 0)
    save_every: int = _count(0, 0)
    keep_checkpoints: int = _count(2)
    tasks: dict[str, float] = field(default_factory=dict, metadata=_WEIGHTS)  # task -> weight among the prompts
    rewards: dict[str, float] = field(default_factory=dict, metadata=_WEIGHTS)  # part -> weight; none: {task = 1}
    reward_timeout: float = _number(10.0, above=True)  # a reward of the user's own may take so long for one answer
    length_penalty: float = _number(0.0)  # taken off an answer of max_tokens
    length_penalty_free_tokens: int | None = _count(None, 0)  # tokens that cost nothing; None: half of max_tokens
    prompts_per_round: int = _count(16)  # different prompts a round
    group_size: int = _count(16, 2)  # rollouts a prompt; GRPO compares them with each other
    epochs: int = _count(1)  # passes over one round's rollouts
    minibatches: int = _count(1)  # optimizer steps of one pass
    clip_ratio: float = _number(0.2, above=True)  # the ratio stays in [1 - clip, 1 + clip_high]
    clip_ratio_high: float | None = _number(None, above=True)  # type: ignore[arg-type]  # None: clip
    kl_weight: float = _number(0.0)  # weight of the divergence from the stage's first weights
    kl_target: float | None = _number(None, above=True)  # type: ignore[arg-type]  # nats a token: kl adapts to it
    entropy_weight: float = _number(0.0)  # weight of the entropy bonus
    temperature: float = _number(1.0, 0.25)
    max_new_tokens: int = _count(64)  # longest rollout, tool output included
    advantage_normalization: str = _choice("centered", "zscore", "leave_one_out")
    loss_normalization: str = _choice("token", "sequence")  # what counts alike: every token, or every answer
    drop_uniform_groups: bool = True  # GRPO: groups whose answers all earned the same are left out
    gamma: float = _number(1.0, 0.0, 1.0)  # PPO: of later rewards
    gae_lambda: float = _number(0.95, 0.0, 1.0)  # PPO: lambda of generalized advantage estimation
    value_weight: float = _number(0.5)  # PPO: of the critic's loss
    value_clip: float = _number(0.2, above=True)  # PPO: the value stays so close to the old one


@dataclass(frozen=True)
class RunConfig:
    """[run]: where it runs and where it writes. Only `dtype` and `rollbacks` change what is learned."""

    out: str = "runs/quickstart"  # the run directory
    init_from: str | None = None  # a checkpoint or Hugging Face directory: the first stage's weights and tokenizer
    device: str = _choice("auto", "cpu", "cuda", "mps")
    dtype: str = _choice("auto", "float32", "bfloat16")
    compile: str = _choice("auto", "on", "off")
    threads: int = _count(0, 0)  # 0: as many as there are cores
    max_rollbacks: int = _count(0, 0)  # how often a stage goes back to its last checkpoint, past gradients not finite
    loggers: tuple[str, ...] = ()  # tensorboard, wandb, trackio: told of every metric, beside the files
    data_dir: str | None = None  # None: FLEDGLING_DATA, or ~/.cache/fledgling
    hardware: str = "cpu"  # what `plan` reckons with (fledgling.plan.hardware); training takes what it finds
    ranks: int = _count(1)  # how many of them `plan` reckons with


@dataclass(frozen=True)
class Recipe:
    """A whole run: every stage's settings, and which of the stages take place."""

    name: str = "quickstart"
    description: str = ""
    seed: int = _count(0, 0)
    stages: tuple[str, ...] = DEFAULT_STAGES
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelTable = field(default_factory=ModelTable)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    pretrain: StageConfig = field(default_factory=StageConfig)
    midtrain: StageConfig = field(default_factory=StageConfig)
    sft: StageConfig = field(default_factory=lambda: StageConfig(train_on="assistant"))
    dpo: DPOConfig = field(default_factory=DPOConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def stage_config(self, name: str) -> StageConfig | DPOConfig | RLConfig:
        """Return the table of one of the stages."""
        if name not in STAGES:
            known = ", ".join(STAGES)
            raise UserError(f'unknown stage "{name}": expected one of {known}{did_you_mean(name, STAGES)}')
        return getattr(self, name)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.toml"))


def load_recipe(name_or_path: str | Path = "quickstart", overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe of that name, TOML file or run directory, with `table.key=value` overrides in order.

    Raises UserError for anything unknown, mistyped or out of range, naming the key.
    """
    path = _find(str(name_or_path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {error}") from error
    table.setdefault("name", path.stem)
    for override in overrides:
        _override(table, override)
    recipe = _read(Recipe, table, "")
    _check_whole(recipe)
    return recipe


def _find(given: str) -> Path:
    """Return the file that a recipe's name, path or run directory means."""
    path = Path(given)
    if path.is_dir() and (path / "recipe.toml").is_file():
        return path / "recipe.toml"
    if path.is_file():
        return path
    shipped = RECIPES_DIR / f"{given}.toml"
    if path.name == given and shipped.is_file():
        return shipped
    if given.endswith(".toml") or path.name != given:
        raise UserError(f"no recipe at {given}: expected a TOML file, or one of {', '.join(recipe_names())}")
    names = recipe_names()
    raise UserError(f'no recipe "{given}": there are {", ".join(names)}{did_you_mean(given, names)}')


def _override(table: dict[str, Any], override: str) -> None:
    """Set `table.key=value` in the nested dictionary; the value is TOML, and a bare word is a string."""
    dotted, sign, text = override.partition("=")
    keys = [key.strip().strip('"') for key in dotted.split(".")]
    if not sign or not all(keys):
        raise UserError(f'override "{override}": expected table.key=value, for example model.depth=6')
    *above, last = keys
    for key in above:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f'override "{override}": {key} is a value, not a table')
        table = inner
    text = text.strip()
    if text.lower() == "none":  # the one value TOML cannot write: back to derived, or to the default
        table.pop(last, None)
        return
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if re.match(r"""[\[{"']""", text):
            raise UserError(f'override "{override}": the value is not TOML: {error}') from error
        table[last] = text


def _read(kind: type, table: Mapping[str, Any], where: str) -> Any:
    """Build the dataclass `kind` from a TOML table; `where` is the dotted path that errors name."""
    known = {entry.name: entry for entry in fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if key not in known:
            what = "table" if isinstance(value, dict) else "key"
            place = f"[{where[:-1]}] has" if where else "a recipe has"
            hint = did_you_mean(key, known) or f": {place} {', '.join(known)}"
            raise UserError(f'unknown {what} "{name}"{hint}')
        if isinstance(hints[key], type) and hasattr(hints[key], "__dataclass_fields__"):
            if not isinstance(value, dict):
                raise UserError(f"{name}: expected a table [{name}], got {value!r}")
            value = {**_changed_defaults(known[key], hints[key]), **value}
            values[key] = _read(hints[key], value, f"{name}.")
        else:
            values[key] = _typed(name, hints[key], value)
            _check_range(name, known[key], values[key])
    return kind(**values)


def _changed_defaults(entry: Field[Any], kind: type) -> dict[str, Any]:
    """Return the fields whose default here differs from the table's own: [sft] learns assistant tokens."""
    if entry.default_factory is MISSING:
        return {}
    here, own = entry.default_factory(), kind()
    return {f.name: getattr(here, f.name) for f in fields(kind) if getattr(here, f.name) != getattr(own, f.name)}


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _typed(name: str, hint: Any, value: Any) -> Any:
    """Return `value` as the field's type; only a whole number for a number is converted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, Union):
        return _typed(name, next(a for a in arguments if a is not type(None)), value)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{name}: expected a table of names and weights, got {value!r}")
        return {key: _typed(f"{name}.{key}", arguments[1], inner) for key, inner in value.items()}
    if origin is tuple:
        open_ended = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (open_ended or len(value) == len(arguments)):
            size = "a list" if open_ended else f"a list of {len(arguments)}"
            raise UserError(f"{name}: expected {size}, got {value!r}")
        return tuple(_typed(f"{name}[{i}]", arguments[0], inner) for i, inner in enumerate(value))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{name}: expected {_WORDS[hint]}, got {value!r}")
    return value


def _check_range(name: str, entry: Field[Any], value: Any) -> None:
    """Raise UserError when a value, or an element of it, is outside the range its field was declared with."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_range(f"{name}.{key}", entry, inner)
        if value and not any(value.values()):
            raise UserError(f"{name}: every weight is 0; give at least one a weight above 0")
        return
    if isinstance(value, tuple):
        for i, inner in enumerate(value):
            _check_range(f"{name}[{i}]", entry, inner)
        return
    limits = entry.metadata
    if "choices" in limits and value not in limits["choices"]:
        known = ", ".join(limits["choices"])
        raise UserError(f'{name}: got "{value}", expected one of {known}{did_you_mean(value, limits["choices"])}')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: got {value}, expected a finite number")
    if "low" not in limits or isinstance(value, str):
        return
    low, high, above = limits["low"], limits.get("high", math.inf), limits.get("above", False)
    if value < low or value > high or (above and value == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        raise UserError(f"{name}: got {value}, expected {bound}" + (f" and at most {high:g}" * (high < math.inf)))


def _check_whole(recipe: Recipe) -> None:
    """Check what spans fields: the stages are named once each, in their order."""
    for name in recipe.stages:
        recipe.stage_config(name)
    if list(recipe.stages) != [name for name in STAGES if name in recipe.stages] or not recipe.stages:
        raise UserError(f"stages: got {list(recipe.stages)}, expected some of {list(STAGES)}, each once, in this order")
