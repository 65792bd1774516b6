"""Every variant of the native kernels computes the same products and steps, up to the rounding it documents."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fledgling.bench.infer import NoSpecialTokens
from fledgling.config import UserError
from fledgling.infer.engine import Engine
from fledgling.kernels import native
from fledgling.kernels.format import dequantize_matrix
from fledgling.kernels.native_build import VARIANTS, list_variants
from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.model.cache import CacheRow
from fledgling.runtime.compiler import find_cxx_compiler
from tests.kernels.matrices import make_matrix, quantize
from tests.kernels.test_decoding_step import compute_logits, make_model

COUNTS = (1, 2, 3, 7, 8, 9, 13, 16, 17, 64)  # rows of x: alone, in every mixture of tiles, in either order of reading
NAMES = [variant.name for variant in list_variants()]
FULL_SIZE = ("avx512-vnni", "avx512")  # compiled for `make test-all` alone: parts of avx512-bf16


@pytest.fixture(params=NAMES)
def variant(request, monkeypatch):
    """Makes a variant the one that is used."""
    if request.param not in [usable.name for usable in native.list_usable_variants()]:
        pytest.skip(f"this processor does not run {request.param}")
    if request.param in FULL_SIZE and not os.environ.get("FLEDGLING_FULL"):
        pytest.skip("at full size: make test-all")
    monkeypatch.setenv(native.ENV_SWITCH, request.param)
    native.load_native_library.cache_clear()
    if native.load_native_library() is None:
        pytest.skip("no compiler")
    yield request.param
    native.load_native_library.cache_clear()


@pytest.mark.parametrize(("bits", "group"), [(16, 0), (8, 32), (8, 64), (8, 128), (4, 32), (4, 64), (4, 1024)])
def test_products_are_as_exact_as_documented(variant, bits, group):
    """The error is that of activations with 14 bits and, except for one or two rows of 8 bits, of weights with 12."""
    weight = make_matrix(23, 1024)
    weight[:, 64:128] *= 0.02  # groups of a row differ
    if bits == 16:
        values = weight.bfloat16()
        matrix, exact = native.describe_matrix(values, None, 16), values.double()
    else:
        packed = quantize(weight, bits, group, torch.bfloat16)
        matrix, exact = packed.matrix, dequantize_matrix(packed.values, packed.scales, bits, torch.float64)
    for count in COUNTS:
        x = make_matrix(count, 1024, 1).bfloat16()
        expected = x.double() @ exact.T
        error = (native.multiply_matrix(x, matrix).double() - expected).square().mean().sqrt()
        limit = 1e-6 if bits == 16 else 1e-4 if bits == 8 and count <= 2 else 4e-4
        assert error < limit * expected.square().mean().sqrt(), (count, error)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_gives_no_finite_product(variant, bits, value):
    """All products of its row are NaN with 8 and 4 bits, in every set of instructions; other rows are as without it."""
    weight = make_matrix(23, 192)
    kept = weight.bfloat16() if bits == 16 else quantize(weight, bits, 32)  # the matrix only points to it
    matrix = native.describe_matrix(kept, None, 16) if bits == 16 else kept.matrix
    for count in (1, 2, 3, 9):
        for column in (0, 77, 191):
            x = make_matrix(count, 192, 1).bfloat16()
            expected = native.multiply_matrix(x, matrix)
            x[count // 2, column] = value
            result = native.multiply_matrix(x, matrix)
            others = torch.arange(count) != count // 2
            assert not result[count // 2].isfinite().any() and torch.equal(result[others], expected[others])
            assert bits == 16 or result[count // 2].isnan().all()


@pytest.mark.parametrize("family", ["fledgling", "gpt2", "llama"])
def test_a_step_loses_no_nan_in_activations_and_attention(variant, family):
    model = make_model(family, {"intermediate_size": 384, "kv_heads": 2, "depth": 1} if family == "llama" else {})
    engine, nan = Engine(model, NoSpecialTokens(), dtype=torch.bfloat16), float("nan")
    assert engine.runner.backend.native_step is not None
    with torch.inference_mode():
        cache, rows = engine.runner.new_cache(), [CacheRow(), CacheRow()]
        engine.runner.extend_cache(cache, rows, [[3, 5, 8], [4, 5, 8]])
        cache.keys[0][rows[1].block_table[0].index, :, 1] = nan
        hidden = engine.runner.extend_cache(cache, rows, [[7], [7]])
        assert hidden[0].isfinite().all() and hidden[1].isnan().all()
    mlp = model.blocks[0].mlp
    (mlp.gate_proj if family == "llama" else mlp.fc1).weight[3, 5] = nan
    assert compute_logits(Engine(model, NoSpecialTokens(), dtype=torch.bfloat16), [[3]], [[7]]).isnan().all()


@pytest.mark.parametrize("columns", [96, 160, 224])
def test_rows_of_half_interleaved_columns_are_left_to_other_code(columns):
    """A reader of 4 bits writes 64 columns at a time: past the end of these rows."""
    values, scales = torch.zeros(8, columns // 2, dtype=torch.uint8), torch.ones(8, columns // 32).bfloat16()
    assert QuantizedTensor(values, scales, 4, torch.bfloat16).matrix is None
    assert native.can_multiply(columns, columns // 32, 8) and native.can_multiply(192, 6, 4)
    for sizes in ((128, 8, 8), (192, 2, 8), (192, 5, 8), (192, 0, 8), (64 * 2048, 2048, 8)):
        assert not native.can_multiply(*sizes)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_of_rows_of_another_width_is_an_error(bits):
    """A wider row would be read as several, and more sums written than the result holds."""
    packed = quantize(make_matrix(8, 64), bits, 32, torch.bfloat16)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.nn.functional.linear(torch.ones(1, 128).bfloat16(), packed)


def test_a_row_of_zeros_and_a_matrix_of_zeros_give_zeros(variant):
    packed = quantize(torch.zeros(8, 64), 4, 32, torch.bfloat16)
    other = quantize(make_matrix(8, 64), 8, 64, torch.bfloat16)
    for count in (1, 9):
        assert not native.multiply_matrix(make_matrix(count, 64).bfloat16(), packed.matrix).any()
        assert not native.multiply_matrix(torch.zeros(count, 64).bfloat16(), other.matrix).any()


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("family", ["fledgling", "gpt2", "llama"])
def test_a_step_is_as_exact_as_the_model_in_bf16(variant, family, bits):
    model = make_model(family, {"intermediate_size": 384, "kv_heads": 2} if family == "llama" else {})
    if bits != 16:
        packed = quantize_state_dict(model.config, model.state_dict(), bits, 32)
        model = load_quantized_model(model.config, packed, {"bits": bits})
    prompts, tokens = [[3, 5, 8], [1]], [[7, 2], [9, 4]]
    stepped, exact = (Engine(model, NoSpecialTokens(), dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert stepped.runner.backend.native_step is not None
    error = compute_logits(stepped, prompts, tokens) - (expected := compute_logits(exact, prompts, tokens))
    assert error.square().mean().sqrt() < 0.02 * expected.std()


def test_dequantized_values_are_rounded_once(variant):
    for bits in (8, 4):
        packed = quantize(make_matrix(5, 192), bits, 32, torch.bfloat16)
        assert torch.equal(packed.dequantize(), dequantize_matrix(packed.values, packed.scales, bits, torch.bfloat16))


def test_a_variant_that_this_processor_lacks_is_an_error_in_one_line(monkeypatch):
    monkeypatch.setenv(native.ENV_SWITCH, "avx9")
    with pytest.raises(UserError, match="FLEDGLING_NATIVE=avx9: expected one of 0"):
        native.load_native_library.__wrapped__()


def test_names_of_files_change_with_sources_and_flags():
    assert len({variant.file_name for variant in VARIANTS}) == len(VARIANTS)


def test_a_prebuilt_library_needs_no_compiler(tmp_path, monkeypatch):
    variants, compiler = native.list_usable_variants(), find_cxx_compiler()
    if not variants or compiler is None:
        pytest.skip("no native kernels here")
    shutil.copy(native._compile_library(compiler, variants[0]), tmp_path)
    monkeypatch.setattr(native, "find_cxx_compiler", lambda: None)
    assert native.load_variant(variants[0]) is None
    monkeypatch.setattr(native, "PREBUILT_FOLDER", tmp_path)
    assert native.load_variant(variants[0]) is not None


def test_a_prebuilt_library_that_cannot_be_loaded_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(native, "PREBUILT_FOLDER", tmp_path)
    monkeypatch.setattr(native, "find_cxx_compiler", lambda: None)
    (tmp_path / VARIANTS[0].file_name).write_bytes(b"\x7fELF cut")
    assert native.load_variant(VARIANTS[0]) is None
    assert "the prebuilt native kernels cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0, 9, -1])
def test_a_library_that_was_cut_is_compiled_again(cut, tmp_path, monkeypatch, capsys):
    """Loading one of which pages are missing ends the process with a bus error."""
    compiled = []

    def compile_library(command, **options):
        compiled.append(command)
        Path(command[command.index("-o") + 1]).write_bytes(b"\x7fELF all of it")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", compile_library)
    path = native._compile_library("g++", VARIANTS[0])
    whole = path.read_bytes()
    assert native._compile_library("g++", VARIANTS[0]) == path and len(compiled) == 1
    path.write_bytes(whole[:cut])
    native._compile_library("g++", VARIANTS[0])
    assert len(compiled) == 2 and path.read_bytes() == whole
    assert "was cut or changed: the native kernels are compiled again" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_threads_change_no_bit_of_a_step(bits, rows, monkeypatch):
    """Each thread computes some rows of every matrix, and reads no buffer that another still writes."""
    model = make_model("llama", {"intermediate_size": 384, "kv_heads": 2})
    if bits != 16:
        packed = quantize_state_dict(model.config, model.state_dict(), bits, 32)
        model = load_quantized_model(model.config, packed, {"bits": bits})
    engine = Engine(model, NoSpecialTokens(), dtype=torch.bfloat16)
    if engine.runner.backend.native_step is None:
        pytest.skip("no native kernels here")
    prompts = [[3, 5, 8]] * rows
    tokens = [[n + row for row in range(rows)] for n in range(12)]
    logits = []
    for threads in (1, 2, 3, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        logits.append(compute_logits(engine, prompts, tokens))
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def run_kernels(folder: Path, compiler: str, flags: tuple[str, ...], *emulator: str) -> torch.Tensor:
    """Returns what native_runner.cpp prints, compiled in one way."""
    program = folder / f"runner-{len(list(folder.iterdir()))}"
    source = Path(__file__).with_name("native_runner.cpp")
    command = [compiler, "-O2", "-std=c++17", "-fopenmp", "-static", *flags, "-o", program, source]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    printed = subprocess.run([*emulator, program], check=True, capture_output=True, text=True, timeout=300).stdout
    return torch.tensor([float(line) for line in printed.splitlines()], dtype=torch.float64)


def test_neon_computes_what_avx2_computes(tmp_path):
    """With the emulator and the cross compiler of Debian: qemu-user and g++-aarch64-linux-gnu."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None or "avx2" not in NAMES:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user, on x86_64")
    avx2 = next(variant for variant in VARIANTS if variant.name == "avx2")
    here = run_kernels(tmp_path, "g++", avx2.flags)
    there = run_kernels(tmp_path, compiler, (), emulator)
    assert len(here) == len(there) > 70_000
    flips = (here - there).abs() > 1e-4  # sums in another order may round to another bf16 between products
    assert flips.sum() < 5e-3 * len(here) and (here - there).abs().max() < 0.05
