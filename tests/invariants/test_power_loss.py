"""Every file that appears in one step is whole after a power cut, wherever it is written; no module renames by itself.

Checkpoints and the record of a stage: tests/record/test_power_loss.py.
"""

import ast
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fledgling.config import ModelConfig, load_recipe
from fledgling.corpora import public_sets
from fledgling.corpora.core_bundle import unpack_bundle
from fledgling.data.shards import ShardWriter, TokenShard
from fledgling.export.gguf import read_gguf_state, write_gguf
from fledgling.export.read_hf import read_hf
from fledgling.export.write_hf import write_hf
from fledgling.kernels import native
from fledgling.kernels.native_build import DIGEST_BYTES, VARIANTS
from fledgling.model.transformer import Transformer
from fledgling.record import write_json, write_text
from fledgling.record.checkpoint import save_checkpoint
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.init_from import find_init_checkpoint
from tests.invariants.structure import read_sources
from tests.record.power_loss import Recording
from tests.record.test_power_loss import folder  # noqa: F401 - a fixture

CONFIG = ModelConfig(family="llama", depth=1, width=32, heads=2, vocab_size=320, context=32)


def make_tokenizer(version: int) -> Tokenizer:
    return Tokenizer.train([f"the quick brown fox {'ab' * version} jumps over the lazy dog {version} " * 9], 320)


def make_weights(version: int) -> dict[str, torch.Tensor]:
    model = Transformer(CONFIG)
    model.initialize(version)
    return model.state_dict()


def find_version(weights: dict[str, torch.Tensor]) -> int:
    """Returns the seed of some weights."""
    return next(v for v in (1, 2) if all(torch.equal(weights[name], t) for name, t in make_weights(v).items()))


def write_shard(path: Path, version: int) -> None:
    with ShardWriter(path, 300, with_mask=True) as writer:
        writer.add_document([version, 2, 3], [True, False, True])


def read_shard(path: Path) -> int:
    shard = TokenShard.open(path)
    shard.verify_hashes()
    return int(shard.tokens[0])


def write_download(path: Path, version: int) -> None:
    source = path.parents[2] / "source"
    source.write_bytes(bytes([version]) * 64)
    public_sets.download_file(source.as_uri(), path, {"path": path.name, "size": 64, "hash": ""}, None)


def read_download(path: Path) -> int:
    """Reads as `fetch` does, to which a file of the right size is downloaded."""
    content = path.read_bytes()
    assert content == content[:1] * 64
    return content[0]


def write_bundle(path: Path, version: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("eval_bundle/core.yaml", str(version))
        zipped.writestr("eval_bundle/eval_data/a.jsonl", "x" * 50)
    archive = path.parents[2] / "bundle.zip"
    archive.write_bytes(buffer.getvalue())
    unpack_bundle(archive, path)


def read_bundle(path: Path) -> int:
    assert (path / "eval_data/a.jsonl").read_text() == "x" * 50
    return int((path / "core.yaml").read_text())


def write_library(path: Path, version: int) -> None:
    """Compiles with a program that writes the version."""
    compiler = path.parents[2] / "compiler"
    compiler.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\nprintf {version} > "$2"\n')
    compiler.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path.parent))
        native._compile_library(str(compiler), VARIANTS[0])


def read_library(path: Path) -> int:
    libraries = list(path.glob("native-*.so"))
    return int(libraries[0].read_bytes()[:-DIGEST_BYTES]) if libraries else 0


def write_init(path: Path, version: int) -> None:
    """Starts a run from a checkpoint that has a tokenizer."""
    outside = path.parents[3]
    file = make_tokenizer(version).save(outside / "tokenizer.json")
    state, files = {"model": CONFIG.to_dict()}, {"tokenizer.json": file}
    given = save_checkpoint(outside / "given", version, {"model": {}}, state, files)
    find_init_checkpoint(load_recipe("quickstart", [f'run.init_from="{given}"']).run, path.parents[1])


def read_tokenizer(path: Path) -> int:
    fingerprint = Tokenizer.load(path).fingerprint()
    return next(v for v in (1, 2) if make_tokenizer(v).fingerprint() == fingerprint)


@dataclass(frozen=True)
class Member:
    """A file or directory that appears in one step.

    replaced: whether an older one may be there. every: of the states, one in this many is read.
    """

    path: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], int]
    replaced: bool = True
    every: int = 1


MEMBERS = {
    "JSON": Member(
        "a/plan.json", lambda path, v: write_json(path, {"v": v}), lambda path: json.loads(path.read_text())["v"]
    ),
    "text": Member(
        "a/recipe.toml", lambda path, v: write_text(path, f"{v}" * 9), lambda path: int(path.read_text()[8])
    ),
    "tokenizer": Member("a/tokenizer.json", lambda path, v: make_tokenizer(v).save(path), read_tokenizer),
    "tokenizer of given weights": Member("a/tokenizer/tokenizer.json", write_init, read_tokenizer, replaced=False),
    "token shard": Member("a/shard", write_shard, read_shard),
    "Hugging Face export": Member(
        "a/hf",
        lambda path, v: write_hf(path, CONFIG, make_weights(v), make_tokenizer(v), "card"),
        lambda path: find_version(read_hf(path).state),
        replaced=False,
        every=9,
    ),
    "GGUF": Member(
        "a/m.gguf",
        lambda path, v: write_gguf(path, CONFIG, make_weights(v), None, "f32", "m"),
        lambda path: find_version(read_gguf_state(path, CONFIG)),
    ),
    "downloaded set": Member("a/part", write_download, read_download, replaced=False),
    "lock file": Member(
        f"a/{public_sets.LOCK_FILE}",
        lambda path, v: public_sets.write_lock_file(path.parent, {"set": {"v": v}}),
        lambda path: public_sets.read_lock_file(path.parent)["set"]["v"],
    ),
    "unpacked exam": Member("a/exam", write_bundle, read_bundle, replaced=False),
    "compiled kernels": Member("a/fledgling", write_library, read_library, replaced=False),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_what_appears_in_one_step_is_whole_after_a_power_cut(name, folder):  # noqa: F811
    member = MEMBERS[name]
    if name == "GGUF":
        pytest.importorskip("gguf")
    (folder / "x/root").mkdir(parents=True)
    path = folder / "x/root" / member.path
    if member.replaced:
        member.write(path, 1)
    recording = Recording(folder / "x/root")
    with recording.watch():
        member.write(path, 2)
        recording.mark("written")
    found = set()
    for state in list(recording.states())[:: -member.every]:
        cut = state.build(folder / "cut") / member.path
        version = member.read(cut) if cut.exists() else 0
        assert version == 2 or not state.marks, state
        found.add(version)
    assert found - {0} == ({1, 2} if member.replaced else {2})


def test_only_the_modules_made_for_it_rename_and_overwrite_files():
    """A rename elsewhere is not flushed, and a file written in place is torn: `record.durable` has both."""
    allowed = {
        "record.durable": {"replace", "write_bytes"},
        "record.atomic_directory": {"replace", "write_text"},  # into a directory that appears when it is complete
        "record.checkpoint": {"write_bytes", "copyfile"},
        "export.write_hf": {"rename", "write_text", "copyfile"},
        "export.adapter_base": {"write_text", "copyfile"},  # into a directory that appears when it is complete
        "export.write_adapter": {"write_text"},  # the same
        "train.distill.stored": {"write_bytes"},  # the same
        "verify.steps": {"copyfile"},  # into a scratch directory
        "corpora.public_sets": {"replace"},  # a file that is checked again
        "cli.eval_chat": {"write_text"},  # reports that a user asks for, and that nothing reads
        "bench.gpu_kernels": {"write_text"},
        "runtime.bounded_lines": {"write_text"},  # what its parent process reads while both run
        "bench.gpu_runs": {"write_text"},  # text in a temporary directory
        "kernels.native_build": {"write_bytes"},  # the same, renamed when it is complete
        "export.node_calls": {"write_text"},  # a script in a temporary directory
    }
    found: dict[str, set[str]] = {}
    for module, source in read_sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, value = node.func.attr, node.func.value
                of_os = isinstance(value, ast.Name) and value.id == "os"
                of_path = name != "replace" or len(node.args) == 1  # str.replace takes two
                if name in ("write_text", "write_bytes", "rename", "replace", "copyfile") and (of_os or of_path):
                    found.setdefault(module, set()).add(name)
    for module, names in found.items():
        assert names <= allowed.get(module, set()), module
