"""llama.cpp itself reads a file: logits of every position and tokens of a text, through a package's shared library.

xllamacpp is a wheel for any processor with AVX2. llama-cpp-python is compiled where it is installed, so for its
processor, and is used where the wheel is not installed (version 0.3.36 crashes on quantized files where it is compiled
with AMX). Their libraries export llama.cpp's C interface, whose structures are declared here as far as they are used.
`load_llama_library` compares their default values with those of the version that they were written for (xllamacpp
2026.10.11549): another layout is not used, so that it gives no wrong figure.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledgling.config import UserError

LIBRARIES = (  # distribution, its module, where in it the library is
    ("xllamacpp", "xllamacpp", "xllamacpp*.so"),
    ("llama-cpp-python", "llama_cpp", "lib/libllama.*"),
)
MIN_CONTEXT = 32  # tokens
DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "flash_attn_type": -1}
DEFAULTS |= {"defrag_thold": -1, "type_k": 1, "type_v": 1}
F32 = 0  # ggml_type
NO_FLASH_ATTENTION = 0  # which would round keys and values to 16 bits


class ContextParams(ctypes.Structure):
    """llama_context_params up to the types of keys and values; the rest is left as it is given."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, ctypes.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, ctypes.c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, ctypes.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((name, ctypes.c_float) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("rest", ctypes.c_ubyte * 256),
    )


class ModelParams(ctypes.Structure):
    """llama_model_params, used as it is given."""

    _fields_ = (("rest", ctypes.c_ubyte * 512),)


class LlamaBatch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@LOG
def ignore_log(level: int, text: bytes, data: int) -> None:
    """Drops the dozens of lines that llama.cpp prints."""


@cache
def load_llama_library() -> Any:
    """Returns the library with its functions declared; None where none is installed, or all have another layout."""
    for distribution, module, pattern in LIBRARIES:
        found = find_spec(module)
        for folder in (found.submodule_search_locations or ()) if found else ():
            for path in sorted(Path(folder).glob(pattern)):
                library: Any = ctypes.CDLL(str(path))
                if declare_functions(library):
                    library.distribution = distribution
                    return library
    return None


def declare_functions(library: Any) -> bool:
    """Declares the functions that are used; False where one is missing or the structures have another layout."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    vocabulary = (pointer, ctypes.c_char_p, integer, ctypes.POINTER(integer), integer, ctypes.c_bool, ctypes.c_bool)
    for name, result, arguments in (
        ("llama_model_default_params", ModelParams, ()),
        ("llama_context_default_params", ContextParams, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, ModelParams)),
        ("llama_init_from_model", pointer, (pointer, ContextParams)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_decode", integer, (pointer, LlamaBatch)),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), (pointer,)),
        ("llama_free", None, (pointer,)),
        ("llama_model_free", None, (pointer,)),
        ("llama_log_set", None, (LOG, pointer)),
        ("llama_tokenize", integer, vocabulary),
        ("llama_print_system_info", ctypes.c_char_p, ()),
    ):
        function = getattr(library, name, None)
        if function is None:
            return False
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(ignore_log, None)
    given = library.llama_context_default_params()
    return all(getattr(given, name) == value for name, value in DEFAULTS.items())


def describe_llama_library(library: Any) -> str:
    """Returns the package with its version and the instructions that it uses: "llama.cpp (xllamacpp 1.2; AVX2 FMA)"."""
    info = library.llama_print_system_info().decode(errors="replace")  # "CPU : AVX2 = 1 | FMA = 1 | "
    features = [part.rpartition(":")[2].split("=") for part in info.split("|")]
    used = [feature[0].strip() for feature in features if feature[-1].strip() == "1"]
    return f"llama.cpp ({library.distribution} {version(library.distribution)}; {' '.join(used)})"


class LlamaCpp:
    """A GGUF file in llama.cpp, in one thread, with keys and values in float32."""

    def __init__(self, path: Path) -> None:
        self.library = load_llama_library()
        if self.library is None:
            raise UserError('llama.cpp is not installed, or in another version: pip install "fledgling[llama-cpp]"')
        self.model = self.library.llama_model_load_from_file(
            str(path).encode(), self.library.llama_model_default_params()
        )
        if not self.model:
            raise UserError(f"llama.cpp cannot load {path}")

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.llama_model_free(self.model)

    def compute_logits(self, tokens: list[int], vocab_size: int) -> Tensor:
        """Returns the logits (T, V) of every position."""
        count = len(tokens)
        params = self.library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = max(count, MIN_CONTEXT)
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = F32
        params.flash_attn_type = NO_FLASH_ATTENTION
        context = self.library.llama_init_from_model(self.model, params)
        if not context:
            raise UserError(f"llama.cpp cannot make a context of {count} tokens")
        integers = ctypes.c_int32 * count
        sequence = ctypes.pointer(ctypes.c_int32(0))
        batch = LlamaBatch(
            count,
            integers(*tokens),
            None,
            integers(*range(count)),
            integers(*[1] * count),
            (ctypes.POINTER(ctypes.c_int32) * count)(*[sequence] * count),
            (ctypes.c_int8 * count)(*[1] * count),
        )
        try:
            assert self.library.llama_decode(context, batch) == 0
            logits = self.library.llama_get_logits(context)
            values = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * (count * vocab_size))).contents
            return torch.frombuffer(bytearray(values), dtype=torch.float32).view(count, vocab_size)
        finally:
            self.library.llama_free(context)

    def tokenize(self, text: str, parses_special: bool) -> list[int]:
        """Returns the ids of a text, without a token at its start."""
        data = text.encode()
        found = (ctypes.c_int32 * (len(data) + 8))()
        vocabulary = self.library.llama_model_get_vocab(self.model)
        count = self.library.llama_tokenize(vocabulary, data, len(data), found, len(found), False, parses_special)
        return found[:count]
