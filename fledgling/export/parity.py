"""Whether an exported model says what ours says: the largest difference of logits, and greedy agreement.

One idea: our model continues a prompt greedily, and the other reads the whole in one pass; where its likeliest token is
ours at every place, it would have written the same text by itself. Where transformers or llama.cpp is installed it is
the judge; the files read back by our own reader are compared in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from fledgling.config import ModelConfig
from fledgling.export import gguf
from fledgling.export.read_hf import read_hf
from fledgling.model.cache import CacheRow, KVCache
from fledgling.model.transformer import Transformer

GREEDY_TOKENS = 200  # tokens
PROMPT_TOKENS = 8

LogitsFunction = Callable[[list[int]], Tensor]  # (T,) ids -> (T, V) float32


@dataclass(frozen=True)
class Parity:
    """One comparison: who read the export, the largest difference of a logit, and how many greedy tokens agreed."""

    reference: str
    max_difference: float
    greedy_matches: int
    greedy_tokens: int


@torch.inference_mode()
def generate_greedy(model: Transformer, prompt: list[int], steps: int) -> list[int]:
    """The `steps` likeliest next tokens after the prompt, one after the other."""
    cache, row = KVCache(model.config, model.compute_dtype), CacheRow()
    written, unread = [], prompt
    for _ in range(steps):
        hidden = model(torch.tensor([unread]), cache_batch=cache.make_batch([row], [len(unread)]))
        row.length += len(unread)
        unread = [int(model.compute_logits(hidden[0, -1]).argmax())]
        written += unread
    return written


@torch.inference_mode()
def compare_logits(
    model: Transformer, other: LogitsFunction, name: str, start: int | None = None, seed: int = 0
) -> Parity:
    """Compare on a row of random tokens and on a greedy continuation of a short one; start: what a text begins with."""
    context, vocabulary = model.config.context, model.config.vocab_size
    draw = torch.Generator().manual_seed(seed)
    row = torch.randint(vocabulary, (min(context, 128),), generator=draw).tolist()
    prompt = row[: min(PROMPT_TOKENS, context // 2)]
    if start is not None:
        prompt[0] = start
    steps = min(GREEDY_TOKENS, context - len(prompt))
    text = prompt + generate_greedy(model, prompt, steps)
    largest = 0.0
    for tokens in (row, text):
        theirs = other(tokens)
        ours = model.compute_logits(model(torch.tensor([tokens])))[0]
        largest = max(largest, (ours - theirs).abs().max().item())
    chosen = theirs[len(prompt) - 1 : -1].argmax(-1).tolist()
    agreed = sum(a == b for a, b in zip(chosen, text[len(prompt) :], strict=True))
    return Parity(name, largest, agreed, steps)


def compare_hf(model: Transformer, directory: Path, start: int | None) -> Iterator[Parity]:
    """Comparisons of a Hugging Face directory with the model it was written from (float32, on the CPU)."""
    source = read_hf(directory)
    yield compare_logits(model, make_logits_function(source.config, source.state), "read back by fledgling", start)
    if find_spec("transformers"):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        name = f"transformers {transformers.__version__}, {type(theirs).__name__}"
        yield compare_logits(model, lambda tokens: theirs(torch.tensor([tokens])).logits[0].float(), name, start)


def compare_gguf(model: Transformer, path: Path, start: int | None) -> Iterator[Parity]:
    """Comparisons of a GGUF file with the model it was written from (float32, on the CPU)."""
    state = gguf.read_gguf_state(path, model.config)
    yield compare_logits(
        model, make_logits_function(model.config, state), "dequantized by gguf, run by fledgling", start
    )
    if find_spec("llama_cpp"):
        import llama_cpp

        size = min(model.config.context, PROMPT_TOKENS + GREEDY_TOKENS)
        whole = llama_cpp.GGML_TYPE_F32  # keys and values as they are, so that only the file is judged
        theirs = llama_cpp.Llama(
            str(path), n_ctx=size, n_batch=size, logits_all=True, type_k=whole, type_v=whole, verbose=False
        )

        def logits(tokens: list[int]) -> Tensor:
            theirs.reset()
            theirs.eval(tokens)
            return torch.tensor(theirs.scores[: len(tokens)])

        yield compare_logits(model, logits, f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", start)


def make_logits_function(config: ModelConfig, state: dict[str, Tensor]) -> LogitsFunction:
    """The logits of our own model with these weights."""
    model = Transformer(config)
    model.load_state_dict(state)
    return lambda tokens: model.compute_logits(model(torch.tensor([tokens])))[0]
