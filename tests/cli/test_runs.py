"""Every command on a copied, moved, linked, read-only or half-written run does what the table of docs/runs.md says."""

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fledgling.cli import main
from fledgling.cli.speedrun import describe_done
from fledgling.config import UserError, load_recipe
from fledgling.record import checkpoint
from fledgling.record.run_lock import hold_lock
from fledgling.speedrun.stages import list_stages_left, run_stages
from fledgling.train.run import run_stage
from tests.fast_run import write_recipe
from tests.train.test_resume_check import digests

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"
COMMANDS = {
    "eval chat": "eval chat RUN --tasks counting --questions 1",
    "report": "report RUN",
    "export hf": "export hf RUN NEW",
    "quantize": "quantize RUN NEW --no-measure",
    "chat": "chat RUN -p hi --max-new-tokens 2",
    "serve": "serve RUN --port 0",
    "train": "train pretrain RUN",
}
OUT_OPTIONS = {"eval chat": "--out NEW", "report": "--out NEW.html"}
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAPABILITY_VERSION = 1, 2, 0x20080522


def read_table() -> dict[tuple[str, str], str]:
    """The cells of the page's table by (run, command)."""
    rows = [line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in row] for row in rows]
    start = next(index for index, row in enumerate(rows) if row[0] == "run")
    header = rows[start]
    table = [row for row in rows[start + 2 :] if len(row) == len(header)]
    return {(row[0], verb): cell for row in table for verb, cell in zip(header[1:], row[1:], strict=True)}


TABLE = read_table()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A pretrained run of one step."""
    options = ('stages=["pretrain"]', "model.width=64", "pretrain.save_every=1")
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("runs")), options)
    assert run_stage(recipe, "pretrain", quiet=True)
    return Path(recipe.run.out)


@contextmanager
def without_root_powers() -> Iterator[None]:
    """Permissions bind this thread, and those that it starts, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) != 0:
        pytest.skip("root, and capabilities cannot be read here: permissions bind no process of root")
    effective = data[0]
    data[0] = effective & ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0


def make_run(kind: str, original: Path, folder: Path) -> Path:
    """A run of this kind in `folder`."""
    run = folder / "run"
    shutil.copytree(original, run)
    if kind == "moved":
        return run.rename(folder / "moved")
    if kind == "linked":
        (folder / "link").symlink_to("run")
        return folder / "link"
    if kind.startswith("read-only"):
        for path in [run, *run.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
    if kind == "without a checkpoint":
        shutil.rmtree(run / "pretrain" / "checkpoints")
        (run / "pretrain" / "done.json").unlink()
    if kind == "with half a checkpoint":
        (run / "pretrain" / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    if kind == "done, with a corrupt checkpoint":
        os.truncate(run / "pretrain" / "checkpoints" / "step-00000001" / "model.safetensors", 1000)
    if kind == "of another version":
        manifest = run / "pretrain" / "checkpoints" / "step-00000001" / "manifest.json"
        manifest.write_text(manifest.read_text().replace("fledgling checkpoint 1", "fledgling checkpoint 2"))
    if kind == "with a torn line":
        with open(run / "pretrain" / "metrics.jsonl", "a") as file:
            file.write('{"step": 2, "lo')
    if kind == "without recipe.toml":
        (run / "recipe.toml").unlink()
    return run


@pytest.fixture(autouse=True)
def no_waiting_server(monkeypatch):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _ in TABLE))
def test_the_cell_of_the_table_is_what_happens(kind, verb, original, tmp_path, capsys):
    run, before = make_run(kind, original, tmp_path), digests(original)
    text = COMMANDS[verb] + (f" {OUT_OPTIONS.get(verb, '')}" if kind.endswith("--out") else "")
    if verb == "train" and kind not in (
        "without a checkpoint",
        "done, with a corrupt checkpoint",
        "of another version",
    ):
        text += " --resume never"
    with without_root_powers():
        code = main(text.replace("RUN", str(run)).replace("NEW", str(tmp_path / "new")).split())
    printed, cell = capsys.readouterr(), TABLE[kind, verb]
    if cell == "works":
        assert code == 0, printed.err
    else:
        assert code == 1 and printed.out == "", printed
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and cell.strip("`") in printed.err
        assert "skipped" not in printed.err, "nothing is used in its place"
    assert digests(original) == before
    if verb == "train" and code == 0:
        assert str(run) in printed.out and str(original) not in printed.out
        assert (run / "pretrain" / "done.json").exists() and not (run / "lock").exists()
        assert checkpoint.find_latest_checkpoint(run / "pretrain" / "checkpoints"), "it can be used"
    if kind == "moved":
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["train pretrain RUN --resume never", "speedrun RUN", "data prepare RUN"])
def test_a_second_start_says_who_holds_the_run_and_writes_nothing(words, original, tmp_path, capsys):
    run = shutil.copytree(original, tmp_path / "run")
    (run / "pretrain" / "done.json").unlink()
    with hold_lock(run, "train"):
        before = digests(run)
        assert main(words.replace("RUN", str(run)).split()) == 1
        assert digests(run) == before
    printed = capsys.readouterr()
    assert f"{run} is being written by process {os.getpid()} on " in printed.err and printed.err.count("\n") == 1


def test_an_evaluation_is_recorded_in_a_run_in_training_and_not_asked_twice_at_once(original, tmp_path, capsys):
    run = shutil.copytree(original, tmp_path / "run")
    evals = run / "pretrain" / "evals.jsonl"
    evals.write_text('{"step": 1, "na')  # the trainer is writing this line
    question = COMMANDS["eval chat"].replace("RUN", str(run)).split()
    with hold_lock(run, "train"):
        assert main(question) == 0
    kept, *added = evals.read_text().splitlines()
    assert kept == '{"step": 1, "na' and '"counting"' in added[0]
    with hold_lock(run / "pretrain" / "exams" / "step-00000001", "another evaluation"):
        capsys.readouterr()
        assert main(question) == 1
        assert "save elsewhere with --out" in capsys.readouterr().err
        assert main([*question, "--out", str(tmp_path / "elsewhere")]) == 0


@pytest.mark.parametrize(
    "place", ["run", "run/pretrain", "run/pretrain/checkpoints", "run/pretrain/checkpoints/step-00000001"]
)
def test_nothing_is_written_where_it_would_pass_for_the_runs_own(place, original, tmp_path, capsys):
    run = shutil.copytree(original, tmp_path / "run")
    before = digests(run)
    for verb in ("quantize", "export hf"):
        assert main([*verb.split(), str(run), str(tmp_path / place)]) == 1
        assert "choose another" in capsys.readouterr().err
    assert digests(run) == before
    assert main(["quantize", str(run), str(run / "small"), "--no-measure"]) == 0  # a folder of its own is fine


@pytest.mark.parametrize("place", [".", "pretrain", "pretrain/checkpoints", "pretrain/checkpoints/step-00000001"])
def test_a_run_is_found_from_within_it(place, original, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(original, tmp_path / "run")
    (tmp_path / "link").symlink_to(run / place)
    for given in (".", tmp_path / "link"):
        monkeypatch.chdir(run / place)
        question = COMMANDS["eval chat"].replace("RUN", str(given)).split()
        (run / "pretrain" / "evals.jsonl").unlink(missing_ok=True)
        assert main(question) == 0
        assert "counting" in (run / "pretrain" / "evals.jsonl").read_text()  # of this run, not lost
    monkeypatch.chdir(run / place)
    assert main(["export", "hf", ".", str(tmp_path / "exported")]) == 0
    assert "Measured during training" in (tmp_path / "exported" / "README.md").read_text()


def test_a_done_stage_with_corrupt_checkpoints_is_trained_again_where_that_is_asked_for(original, tmp_path, capsys):
    run = shutil.copytree(original, tmp_path / "run")
    path = run / "pretrain" / "checkpoints" / "step-00000001" / "model.safetensors"
    whole = path.read_bytes()
    corrupt = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(corrupt)
    before = digests(run)
    for command in ("train pretrain RUN", "speedrun RUN", "speedrun RUN --dry-run"):
        assert main(command.replace("RUN", str(run)).split()) == 1
        error = capsys.readouterr().err
        assert "model.safetensors does not match" in error and "--resume never` trains it again" in error
        assert error.count("\n") == 1 and digests(run) == before
    recipe = load_recipe(run, ['stages=["pretrain", "midtrain"]'])
    with pytest.raises(UserError, match="none of its checkpoints can be used"):
        list_stages_left(recipe)
    (run / "midtrain").mkdir()
    (run / "midtrain" / "done.json").write_text("{}")
    assert list_stages_left(recipe) == run_stages(recipe, quiet=True) == [], "a later stage is done: not needed"
    assert path.read_bytes() == corrupt
    assert main(["train", "pretrain", str(run), "--resume", "never"]) == 0 and path.read_bytes() == whole
    capsys.readouterr()
    shutil.rmtree(run / "pretrain" / "checkpoints")  # to make room
    assert main(["train", "pretrain", str(run)]) == 0 and "was done already" in capsys.readouterr().out


def test_every_command_of_the_table_is_tried():
    assert {verb for _, verb in TABLE} == set(COMMANDS)
    assert {cell for cell in TABLE.values() if cell != "works" and not re.fullmatch(r"`[^`]+`", cell)} == set()


def test_a_copy_is_restarted_and_the_original_keeps_every_byte(original, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, "runs/a")
    recipe = Path("runs/a/recipe.toml")
    recipe.write_text(recipe.read_text().replace(str(original), "runs/a"))
    before = digests(Path("runs/a"))
    shutil.copytree("runs/a", "runs/b")
    Path("runs/b/environment.json").unlink()  # half-written: the recipe.toml is still that of runs/b
    command = ["train", "pretrain", "runs/b/recipe.toml", "--resume", "never", "--set", "optimizer.matrix_lr=0.5"]
    assert main(command) == 0
    assert digests(Path("runs/a")) == before and "runs/b/pretrain" in capsys.readouterr().out
    assert digests(Path("runs/b")) != before
    assert 'out = "runs/b"' in Path("runs/b/recipe.toml").read_text()
    assert main(["data", "prepare", "runs/b"]) == main(["speedrun", "runs/b"]) == 0
    assert digests(Path("runs/a")) == before
    shutil.copy(recipe, "my.toml")
    with hold_lock(Path("runs/a"), "train"):
        assert main(["train", "pretrain", "my.toml", "--resume", "never"]) == 1
    error = capsys.readouterr().err
    assert "runs/a/pretrain (finished at step 1) is replaced, as run.out of my.toml names it" in error
    assert digests(Path("runs/a")) == before


def test_only_stages_that_were_made_are_named_as_done(tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "done.json").write_text("{}")
    line = describe_done(str(tmp_path), ["pretrain", "sft"])  # the budget had no time for the second
    assert line.startswith(f"all is done in {tmp_path}: pretrain; ")
