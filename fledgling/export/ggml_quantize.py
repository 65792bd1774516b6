"""Quantization by ggml itself: K-quants, and any type with an importance for each input of a matrix.

The `gguf` package writes the simple types and only reads K-quants. ggml has one C function for all of them, whose
arguments are numbers and arrays: `ggml_quantize_chunk`. It is called in the library that an installed package of
llama.cpp brings: llama-cpp-python, or xllamacpp.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledgling.config import UserError

LIBRARIES = (  # package: where in it the library is
    ("llama_cpp", "lib/*ggml-base.*"),
    ("xllamacpp", "xllamacpp*.so"),
    ("xllamacpp", "xllamacpp*.pyd"),
)
ROWS = 1024  # quantized by one call


@cache
def load_ggml() -> Any:
    """Returns the library with its functions declared. Raises UserError where no package brings one."""
    for package, pattern in LIBRARIES:
        found = find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            for path in sorted(Path(folder).glob(pattern)):
                library = ctypes.CDLL(str(path))
                if hasattr(library, "ggml_quantize_chunk"):
                    return _declare(library)
    raise UserError('K-quants and importance need llama.cpp itself: pip install "fledgling[llama-cpp]"')


def _declare(library: Any) -> Any:
    integer, numbers = ctypes.c_int64, ctypes.POINTER(ctypes.c_float)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        *(ctypes.c_int, numbers, ctypes.c_void_p),
        *(integer, integer, integer, numbers),
    )
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = (ctypes.c_int,)
    library.ggml_blck_size.restype = integer
    library.ggml_blck_size.argtypes = (ctypes.c_int,)
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = (ctypes.c_int, integer)
    return library


def ggml_quantize(
    values: NDArray[np.float32], ggml_type: int, importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """Returns a matrix in a type of ggml.

    Args:
        values: (out, in), finite; `in` is a multiple of the type's block.
        ggml_type: ggml's number of the type.
        importance: (in,), the mean square of each input; None counts all alike.

    Returns:
        (out, bytes of a row).

    Raises UserError for values that are not finite, and for a type that needs an importance and has none.
    """
    library, (rows, width) = load_ggml(), values.shape
    if not np.isfinite(values).all():
        raise UserError("the weights are not all finite, and no quantized type can hold that")
    if importance is None and library.ggml_quantize_requires_imatrix(ggml_type):
        raise UserError("this type needs the importance of inputs: give a text by --importance")
    assert width % library.ggml_blck_size(ggml_type) == 0, "rows are whole blocks: choose_type sees to it"
    values = np.ascontiguousarray(values, dtype=np.float32)
    row_bytes = library.ggml_row_size(ggml_type, width)
    stored = np.empty((rows, row_bytes), dtype=np.uint8)
    numbers = ctypes.POINTER(ctypes.c_float)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    assert weights is None or weights.shape == (width,)
    pointer = None if weights is None else weights.ctypes.data_as(numbers)
    for first in range(0, rows, ROWS):
        part, count = values[first:], min(ROWS, rows - first)
        written = library.ggml_quantize_chunk(
            ggml_type, part.ctypes.data_as(numbers), stored[first:].ctypes.data, 0, count, width, pointer
        )
        assert written == count * row_bytes, "ggml wrote another number of bytes than its rows have"
    return stored
