"""The backends of `bench infer`: the engine, `transformers.generate` and llama.cpp, with the same weights.

A backend takes prompts and returns seconds, the first of them including the prefill. It samples greedily and takes each
token into Python, as a caller does. transformers and llama.cpp are optional.

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
from fledgling.export.hf_tensor import to_hf_tensor
from fledgling.export.llama_cpp import LlamaBatch, load_llama_library
from fledgling.infer.device_decoder import run_block
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.kernels.quantized_model import count_weight_bytes
from fledgling.model.positions import LearnedPositions
from fledgling.model.transformer import Transformer

LLAMA_CPP_FORMATS = {16: "f16", 8: "q8_0", 4: "q4_0"}  # file type of each width


class GenerationBackend(Protocol):
    """Generates tokens after prompts, and measures their time."""

    weight_bytes_read: int  # by each further token: all weights except for an untied embedding
    max_batch_size: int

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Generates `tokens` tokens after each of B prompts of T token ids.

        Returns:
            Seconds to the first token of all rows, then seconds of each further token of all rows.
        """


class EngineBackend:
    """The engine, step by step as in the server."""

    max_batch_size = 1 << 16

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.weight_bytes_read = weight_bytes_per_token(engine.model)
        self.decode_path = ""  # how the last tokens were decoded

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Generates tokens; see `GenerationBackend`."""
        scheduler = self.engine.make_scheduler(len(prompts))
        sampling = SamplingParams(temperature=0.0, max_new_tokens=tokens)
        for index, prompt in enumerate(prompts):
            scheduler.add_request(self.engine.make_request(prompt, sampling, index, use_tools=False))
        times: list[float] = []
        while scheduler.has_unfinished:  # the first step prefills the prompts and samples the first tokens
            start = time.perf_counter()
            scheduler.step()
            times.append(time.perf_counter() - start)
        self.decode_path = describe_decode_path(scheduler)
        return times


def describe_decode_path(scheduler: Scheduler) -> str:
    """Returns how a scheduler decodes: reads each token at once, or one step late with which attention and graphs."""
    if scheduler.pipeline is None:
        return "reads each token at once"
    decoder = scheduler.pipeline.decoder
    block = "compiled" if decoder.run_block is not run_block else "not compiled"
    return f"reads tokens one step late, {decoder.kernel}, {block}, {len(decoder.graphs.graphs)} graphs"


class TransformersBackend:
    """`transformers.generate`, timed by a stopping criterion that is called after each token."""

    max_batch_size = 1 << 16

    def __init__(self, model: Transformer, dtype: torch.dtype, device: torch.device) -> None:
        import transformers

        model_class = getattr(transformers, hf_mapping.CLASSES[model.config.family])
        self.model = model_class(model_class.config_class.from_dict(hf_mapping.to_hf_config(model.config)))
        state = model.state_dict()
        tensors = {entry.hf_name: to_hf_tensor(entry, state) for entry in hf_mapping.tensor_mappings(model.config)}
        tied = model.config.tie_embeddings  # then the head is one tensor under two names
        self.model.load_state_dict(tensors, strict=not tied)
        self.model = self.model.to(device, dtype).eval()
        self.device = device
        self.weight_bytes_read = dtype.itemsize * (model.count_parameters() - count_lookup_values(model))

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Generates tokens; see `GenerationBackend`."""
        stamps = [time.perf_counter()]

        def stamp(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            ids[:, -1].tolist()  # as a caller reads the token: waits for the GPU
            stamps.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

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
        return [end - start for start, end in itertools.pairwise(stamps)]

    def logits(self, prompt: list[int]) -> torch.Tensor:
        """Returns the logits (V,) after a prompt."""
        with torch.inference_mode():
            return self.model(torch.tensor([prompt], device=self.device)).logits[0, -1].float()


class LlamaCppBackend:
    """llama.cpp through its C API, on a GGUF file of the same weights, one prompt at a time."""

    max_batch_size = 1

    def __init__(self, model: Transformer, bits: int, folder: Path, context: int) -> None:
        file_type = LLAMA_CPP_FORMATS[bits]
        path = gguf.write_gguf(folder / f"{file_type}.gguf", model.config, model.state_dict(), None, file_type, "bench")
        tensors = gguf.import_gguf().GGUFReader(path).tensors
        tied = model.config.tie_embeddings
        self.weight_bytes_read = sum(int(t.n_bytes) for t in tensors if tied or t.name != "token_embd.weight")
        self.library, self.vocab_size = load_llama_library(), model.config.vocab_size
        for name, result, arguments in (
            ("llama_get_memory", ctypes.c_void_p, (ctypes.c_void_p,)),
            ("llama_memory_clear", None, (ctypes.c_void_p, ctypes.c_bool)),
        ):
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        params = self.library.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        self.model = self.library.llama_model_load_from_file(
            str(path).encode(), self.library.llama_model_default_params()
        )
        self.context = self.library.llama_init_from_model(self.model, params)
        path.unlink()  # the file is memory-mapped

    def generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Generates tokens; see `GenerationBackend`."""
        (next_ids,) = prompts
        library, times = self.library, []
        library.llama_memory_clear(library.llama_get_memory(self.context), True)
        for _ in range(tokens):
            start = time.perf_counter()
            ids = (ctypes.c_int32 * len(next_ids))(*next_ids)
            assert library.llama_decode(self.context, LlamaBatch(len(next_ids), ids)) == 0  # logits of the last token
            next_ids = [int(self.logits().argmax())]
            times.append(time.perf_counter() - start)
        return times

    def logits(self) -> np.ndarray:
        """Returns the logits (V,) after the last token."""
        return np.ctypeslib.as_array(self.library.llama_get_logits(self.context), (self.vocab_size,))


def count_lookup_values(model: Transformer) -> int:
    """Returns the number of weights in lookup tables (untied embedding, positions): a token reads one row of them."""
    config = model.config
    table = 0 if config.tie_embeddings else config.vocab_size * config.width
    return table + (config.context * config.width if config.positions == "learned" else 0)


def weight_bytes_per_token(model: Transformer) -> int:
    """Returns the bytes of a model's weights that each token reads: all but lookup tables."""
    weight = model.embedding.weight
    embedding_bytes = 0 if model.config.tie_embeddings else getattr(weight, "packed_bytes", weight.nbytes)
    positions = model.positions
    position_bytes = positions.weight.nbytes if isinstance(positions, LearnedPositions) else 0
    return count_weight_bytes(model) - embedding_bytes - position_bytes
