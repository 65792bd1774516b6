"""Who answers in `bench infer`: our engine, `transformers.generate` and llama.cpp, each with the same weights.

The one idea: a speaker takes prompts and gives back seconds, the first of them with the prompt; it draws greedily and
takes each token into Python, as a caller would. Peers are optional: a speaker is made only where its package is.

B rows, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fledgling.export import gguf, hf_mapping
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.kernels.quantized_model import count_weight_bytes
from fledgling.model.transformer import Transformer

LLAMA_CPP_FORMATS = {16: "f16", 8: "q8_0", 4: "q4_0"}  # the file of each width


class Backend(Protocol):
    """Something that answers prompts (B lists of T ids) with `tokens` more each."""

    weight_bytes_read: int  # bytes of weights that a further token reads: all but an untied embedding
    max_batch_size: int  # the most prompts it answers at once

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Seconds to the first token of all rows, then seconds of each further token of all rows."""


class EngineBackend:
    """The engine, stepped as the server steps it."""

    max_batch_size = 1 << 16

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.weight_bytes_read = weight_bytes_per_token(engine.model)

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        decoder, sampling = Scheduler(self.engine, len(prompts)), SamplingParams(temperature=0.0, max_new_tokens=tokens)
        for index, prompt in enumerate(prompts):
            decoder.add_request(prompt, sampling, index, use_tools=False)
        times: list[float] = []
        while decoder.has_unfinished:  # the first step reads the prompts and draws the first tokens
            began = time.perf_counter()
            decoder.step()
            times.append(time.perf_counter() - began)
        return times


class TransformersBackend:
    """`transformers.generate` on the same weights; it calls back after each token."""

    max_batch_size = 1 << 16

    def __init__(self, model: Transformer, dtype: torch.dtype, device: torch.device) -> None:
        import transformers

        kind = getattr(transformers, hf_mapping.CLASSES[model.config.family])
        self.model = kind(kind.config_class.from_dict(hf_mapping.to_hf_config(model.config)))
        state = model.state_dict()
        tensors = {
            entry.hf_name: hf_mapping.to_hf_tensor(entry, state) for entry in hf_mapping.tensor_mappings(model.config)
        }
        self.model.load_state_dict(
            tensors, strict=not model.config.tie_embeddings
        )  # a tied head is one tensor under two names
        self.model = self.model.to(device, dtype).eval()
        self.device = device
        self.weight_bytes_read = dtype.itemsize * (model.count_parameters() - count_lookup_values(model))

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        stamps = [time.perf_counter()]

        def stamp(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            ids[:, -1].tolist()  # what a caller does with a token: on a GPU it waits for it
            stamps.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # nobody is done

        ids = torch.tensor(prompts, device=self.device)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
            stopping_criteria=[stamp],
        )
        return [after - before for before, after in itertools.pairwise(stamps)]

    def logits(self, prompt: list[int]) -> torch.Tensor:
        """Logits (V,) after a prompt."""
        with torch.inference_mode():
            return self.model(torch.tensor([prompt], device=self.device)).logits[0, -1].float()


class LlamaCppBackend:
    """llama.cpp by its C interface, on a GGUF file of the same weights, one prompt at a time."""

    max_batch_size = 1

    def __init__(self, model: Transformer, bits: int, folder: Path, room: int) -> None:
        import llama_cpp

        kind = LLAMA_CPP_FORMATS[bits]
        path = gguf.write_gguf(folder / f"{kind}.gguf", model.config, model.state_dict(), None, kind, "bench")
        tensors = gguf.import_gguf().GGUFReader(path).tensors
        tied = model.config.tie_embeddings
        self.weight_bytes_read = sum(
            int(t.n_bytes) for t in tensors if tied or t.name != gguf.OUTER_NAMES["embedding.weight"]
        )
        self.api, self.vocabulary = llama_cpp, model.config.vocab_size
        silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(silent, None)
        self.silent = silent  # kept: it is called from there
        wishes = llama_cpp.llama_context_default_params()
        wishes.n_ctx = wishes.n_batch = room
        wishes.n_threads = wishes.n_threads_batch = torch.get_num_threads()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        self.context = llama_cpp.llama_init_from_model(self.model, wishes)
        path.unlink()  # it is mapped, and needs no name any more

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        (unread,) = prompts
        api, times = self.api, []
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        for _ in range(tokens):
            began = time.perf_counter()
            ids = (api.llama_token * len(unread))(*unread)
            assert api.llama_decode(self.context, api.llama_batch_get_one(ids, len(unread))) == 0
            unread = [int(self.logits().argmax())]
            times.append(time.perf_counter() - began)
        return times

    def logits(self) -> np.ndarray:
        """Logits (V,) after the last token read."""
        values = ctypes.cast(self.api.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(values, (self.vocabulary,))


def count_lookup_values(model: Transformer) -> int:
    """Values of which a token reads one row alone: an untied embedding, and learned positions."""
    config = model.config
    table = 0 if config.tie_embeddings else config.vocab_size * config.width
    return table + (config.context * config.width if config.positions == "learned" else 0)


def weight_bytes_per_token(model: Transformer) -> int:
    """Bytes of a model's weights that each token reads whole."""
    weight = model.embedding.weight
    held = 0 if model.config.tie_embeddings else getattr(weight, "packed_bytes", weight.nbytes)
    learned = model.positions.weight.nbytes if model.config.positions == "learned" else 0
    return count_weight_bytes(model) - held - learned
