"""Compares an exported model with the original: the largest difference of logits, and greedy agreement.

Our model continues a prompt greedily, and the other reads the whole text in one pass; where its most probable token is
ours at every position, it would generate the same text. Where transformers or llama.cpp is installed, they are
compared; the files read by our own reader are compared in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledgling.config import ModelConfig
from fledgling.export import gguf
from fledgling.export.llama_cpp import LlamaCpp, describe_llama_library, load_llama_library
from fledgling.export.own_class import needs_own_class
from fledgling.export.read_hf import read_hf
from fledgling.model.cache import CacheRow, KVCache
from fledgling.model.transformer import Transformer

GREEDY_TOKENS = 200  # tokens
PROMPT_TOKENS = 8
MAX_TIE = 0.1  # of logits: where readers differ by more, their weights do, and no choice is one of rounding

LogitsFunction = Callable[[list[int]], Tensor]  # (T,) ids -> (T, V) float32


@dataclass(frozen=True)
class Parity:
    """One comparison: the reader, the largest difference of a logit, and how many greedy tokens agree.

    greedy_ties: of those that disagree, the ones whose logits are closer here than the readers differ, so that rounding
        decides; none where the weights differ, as those of few bits do. Others are a fault, or the weights'.
    """

    reference: str
    max_difference: float
    greedy_matches: int
    greedy_tokens: int
    greedy_ties: int = 0


@torch.inference_mode()
def generate_greedy(model: Transformer, prompt: list[int], steps: int) -> list[int]:
    """Returns the `steps` most probable next tokens after the prompt, one after the other."""
    cache, row = KVCache(model.config, model.compute_dtype), CacheRow()
    generated, remaining = [], prompt
    for _ in range(steps):
        hidden = model(torch.tensor([remaining]), cache_batch=cache.make_batch([row], [len(remaining)]))
        row.length += len(remaining)
        remaining = [int(model.compute_logits(hidden[0, -1]).argmax())]
        generated += remaining
    return generated


@dataclass(frozen=True)
class Reference:
    """What our model computes of two texts: random tokens, and a prompt with its greedy continuation."""

    texts: tuple[list[int], list[int]]
    prompt_length: int  # tokens of the second text that are not generated
    logits: tuple[Tensor, Tensor]  # (T, V) of each text


@torch.inference_mode()
def make_reference(model: Transformer, start: int | None = None, seed: int = 0) -> Reference:
    """Returns what all readers of an export are compared with.

    Args:
        model: ours.
        start: the first token of a text; None: any.
        seed: of the random tokens.
    """
    context, vocabulary = model.config.context, model.config.vocab_size
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(vocabulary, (min(context, 128),), generator=generator).tolist()
    prompt = row[: min(PROMPT_TOKENS, context // 2)]
    if start is not None:
        prompt[0] = start
    continuation = prompt + generate_greedy(model, prompt, min(GREEDY_TOKENS, context - len(prompt)))
    of_row, of_continuation = (model.compute_logits(model(torch.tensor([text])))[0] for text in (row, continuation))
    return Reference((row, continuation), len(prompt), (of_row, of_continuation))


def compare_logits(
    model: Transformer, other: LogitsFunction, name: str, start: int | None = None, seed: int = 0
) -> Parity:
    """Compares on random tokens and on a greedy continuation of a short prompt.

    Args:
        model: ours.
        other: token ids (T,) of a row -> logits (T, V) of the other program.
        name: of the other program.
        start: the first token of a text; None: any.
        seed: of the random tokens.
    """
    return compare_reader(make_reference(model, start, seed), other, name)


@torch.inference_mode()
def compare_reader(reference: Reference, other: LogitsFunction, name: str) -> Parity:
    """Compares the logits of another program with our model's; see `compare_logits`."""
    differences = []
    for tokens, our_logits in zip(reference.texts, reference.logits, strict=True):
        other_logits = other(tokens)
        differences.append((our_logits - other_logits).abs().max())
    max_difference = float(torch.stack(differences).max())  # NaN stays NaN, as Python's max would not have it
    generated = slice(reference.prompt_length - 1, -1)
    other_choices = other_logits[generated].argmax(-1)
    choices = torch.tensor(reference.texts[1][reference.prompt_length :])
    agrees = other_choices == choices
    logits = reference.logits[1][generated]
    margins = (logits.gather(1, choices[:, None]) - logits.gather(1, other_choices[:, None]))[:, 0]
    ties = int((~agrees & (margins.abs() <= 2 * max_difference)).sum()) if max_difference <= MAX_TIE else 0
    return Parity(name, max_difference, int(agrees.sum()), len(choices), ties)


def compare_hf(model: Transformer, directory: Path, start: int | None, quantized: bool = False) -> Iterator[Parity]:
    """Yields comparisons of a Hugging Face directory with its original model (float32, on the CPU).

    quantized: its matrices are those of compressed_tensors.py, which are read by transformers only.
    """
    reference = make_reference(model, start)
    if not quantized:
        imported = read_hf(directory)
        logits = make_logits_function(imported.config, imported.state)
        yield compare_reader(reference, logits, "read back by fledgling")
    if find_spec("transformers") and (not quantized or find_spec("compressed_tensors")):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        loader: Any = transformers.AutoModelForCausalLM
        if needs_own_class(model.config):  # the code that the directory carries, from where it was copied
            from fledgling.export import modeling_fledgling

            loader = modeling_fledgling.FledglingForCausalLM
        other = loader.from_pretrained(directory, dtype=torch.float32).eval()
        name = f"transformers {transformers.__version__}, {type(other).__name__}"
        yield compare_reader(reference, lambda tokens: other(torch.tensor([tokens])).logits[0].float(), name)


def compare_gguf(model: Transformer, path: Path, start: int | None) -> Iterator[Parity]:
    """Yields comparisons of a GGUF file with its original model (float32, on the CPU)."""
    state, reference = gguf.read_gguf_state(path, model.config), make_reference(model, start)
    logits = make_logits_function(model.config, state)
    yield compare_reader(reference, logits, "dequantized by gguf, run by fledgling")
    if load_llama_library() is not None:
        with LlamaCpp(path) as other:
            size = model.config.vocab_size
            yield compare_reader(
                reference, lambda tokens: other.compute_logits(tokens, size), describe_llama_library(other.library)
            )


def compare_mlx(model: Transformer, directory: Path, start: int | None) -> Iterator[Parity]:
    """Yields a comparison of a directory for mlx-lm with its original model, where mlx-lm is installed."""
    if find_spec("mlx_lm") and find_spec("mlx"):
        import mlx.core
        import mlx_lm.utils

        mlx.core.set_default_device(mlx.core.cpu)
        other, _ = mlx_lm.utils.load_model(directory)

        def logits(tokens: list[int]) -> Tensor:
            values = other(mlx.core.array([tokens]))[0].astype(mlx.core.float32)
            return torch.tensor(values.tolist())

        yield compare_logits(model, logits, f"mlx-lm {mlx_lm.__version__}", start)


def compare_onnx(model: Transformer, path: Path, start: int | None) -> Iterator[Parity]:
    """Yields a comparison of an ONNX graph with its original model, where onnxruntime is installed."""
    if find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def logits(tokens: list[int]) -> Tensor:
            return torch.from_numpy(session.run(None, {"tokens": np.array([tokens], dtype=np.int64)})[0][0])

        yield compare_logits(model, logits, f"onnxruntime {onnxruntime.__version__}", start)


def make_logits_function(config: ModelConfig, state: dict[str, Tensor]) -> LogitsFunction:
    """Returns a function from token ids to the logits of our own model with these weights."""
    model = Transformer(config)
    model.load_state_dict(state)
    return lambda tokens: model.compute_logits(model(torch.tensor([tokens])))[0]
