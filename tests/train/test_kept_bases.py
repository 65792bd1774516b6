"""What a later stage's adapter belongs to is kept when its stage is restarted or trained further, and no longer."""

import pytest
import torch

from fledgling.config import AdapterConfig
from fledgling.export.checkpoint_weights import describe_adapter, find_base, read_adapter_state
from fledgling.record import checkpoint
from fledgling.train import kept_bases
from fledgling.train.replaced_stage import remove_replaced_stage, set_stage_aside
from fledgling.verify.files import check_checkpoints
from tests.record.power_loss import Recording
from tests.record.test_power_loss import folder  # noqa: F401 - a fixture


def remove_stage(stage_dir):
    """Deletes a stage as a restart does."""
    set_stage_aside(stage_dir)
    remove_replaced_stage(stage_dir)


def save(run_dir, stage, step, value, base=None, digests=True):
    """A checkpoint of one number; with `base`, of an adapter on it."""
    directory = run_dir / stage / "checkpoints"
    group, state = "model", {"stage": stage, "step": step}
    if base is not None:
        group = "adapter_model"
        state["adapter"] = describe_adapter(AdapterConfig("lora"), directory / f"step-{step:08d}", base)
        if not digests:
            del state["adapter"]["base_digests"]
    return checkpoint.save_checkpoint(directory, step, {group: {"w": torch.tensor([float(value)])}}, state)


def find_place(path):
    state = checkpoint.read_checkpoint_state(path)
    found = find_base(state, read_adapter_state(state, path)[1])
    assert found is not None
    checkpoint.verify_checkpoint(found)
    return found


def base_of(path):
    found = find_place(path)
    return next(iter(checkpoint.load_checkpoint(found).tensors.values()))["w"].item()


def kept(run_dir):
    return sorted(str(path.relative_to(run_dir / "bases"))[:22] for path in (run_dir / "bases").glob("*/*"))


@pytest.mark.parametrize("digests", [True, False])
def test_a_restarted_stage_keeps_the_base_of_adapters_until_the_last_of_them_is_gone(tmp_path, digests):
    save(tmp_path, "pretrain", 2, 1.0)
    base = save(tmp_path, "pretrain", 4, 2.0)
    first, second = (save(tmp_path, stage, 3, 3.0, base, digests) for stage in ("sft", "rl"))
    remove_stage(tmp_path / "pretrain")
    assert kept(tmp_path) == ["pretrain/step-00000004"] and not (tmp_path / "pretrain").exists()
    assert base_of(first) == base_of(second) == 2.0
    if digests:
        save(tmp_path, "pretrain", 4, 5.0)
        assert base_of(first) == 2.0, "other weights have the base's place"
    remove_stage(tmp_path / "sft")
    assert base_of(second) == 2.0
    remove_stage(tmp_path / "rl")
    assert kept(tmp_path) == []


def test_a_stage_trained_further_keeps_it_too_and_deletes_the_others(tmp_path):
    base = save(tmp_path, "pretrain", 1, 1.0)
    adapter = save(tmp_path, "midtrain", 1, 9.0, base)
    for step in (2, 3, 4):
        save(tmp_path, "pretrain", step, step)
        checkpoint.prune_checkpoints(tmp_path / "pretrain/checkpoints", 1, kept_bases.remove_checkpoint)
    assert kept(tmp_path) == ["pretrain/step-00000001"] and base_of(adapter) == 1.0
    assert [path.name for path in (tmp_path / "pretrain/checkpoints").iterdir()] == ["step-00000004"]
    checkpoint.discard_checkpoints_after(tmp_path / "pretrain/checkpoints", 3, kept_bases.remove_checkpoint)
    assert len(kept(tmp_path)) == 1


def test_a_base_that_is_an_adapter_itself_still_finds_its_own(tmp_path):
    """sft has another shape than midtrain, so it belongs to midtrain's adapter, and that to pretraining."""
    base = save(tmp_path, "pretrain", 1, 1.0)
    middle = save(tmp_path, "midtrain", 1, 2.0, base)
    last = save(tmp_path, "sft", 1, 3.0, middle)
    remove_stage(tmp_path / "midtrain")
    remove_stage(tmp_path / "pretrain")
    assert kept(tmp_path) == ["midtrain/step-00000001", "pretrain/step-00000001"]
    assert base_of(last) == 2.0 and base_of(next((tmp_path / "bases/midtrain").iterdir())) == 1.0
    remove_stage(tmp_path / "sft")
    kept_bases.drop_unneeded_bases(tmp_path)
    assert kept(tmp_path) == [], "what only a kept one needed goes with it"


def test_after_a_power_cut_at_any_moment_the_base_is_in_one_of_its_two_places(folder):  # noqa: F811
    base = save(folder / "root/run", "pretrain", 4, 1.0)
    adapter = save(folder / "root/run", "sft", 3, 3.0, base)
    recording = Recording(folder / "root")
    with recording.watch():
        remove_stage(folder / "root/run/pretrain")
    states = list(recording.states())
    places = {
        found.parent.name
        for state in states
        if (found := find_place(state.build(folder / "cut") / adapter.relative_to(folder / "root"))).is_dir()
    }
    assert len(states) > 5 and places == {"checkpoints", "pretrain"}


def test_kept_bases_are_checked_with_the_checkpoints_of_a_run(tmp_path):
    base = save(tmp_path, "pretrain", 4, 1.0)
    save(tmp_path, "sft", 3, 3.0, base)
    remove_stage(tmp_path / "pretrain")
    (place,) = (tmp_path / "bases/pretrain").iterdir()
    assert place in checkpoint.list_checkpoints(tmp_path)
    assert check_checkpoints(tmp_path, lambda name: None).problems == []
    (place / "model.safetensors").write_bytes(b"")
    (problem,) = check_checkpoints(tmp_path, lambda name: None).problems
    assert problem.startswith(f"{place.relative_to(tmp_path)}/model.safetensors")


def test_of_a_linked_stage_the_base_is_kept_as_a_link(tmp_path):
    save(tmp_path / "a", "pretrain", 1, 1.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/pretrain").symlink_to(tmp_path / "a/pretrain")
    adapter = save(tmp_path / "b", "sft", 1, 3.0, tmp_path / "b/pretrain/checkpoints/step-00000001")
    remove_stage(tmp_path / "b/pretrain")
    assert base_of(adapter) == 1.0 and (tmp_path / "a/pretrain/checkpoints/step-00000001").is_dir()


def test_later_stages_are_named_before_their_weights_change(tmp_path):
    base = save(tmp_path, "pretrain", 4, 1.0)
    assert kept_bases.describe_dependents(tmp_path, "pretrain") == []
    save(tmp_path, "midtrain", 2, 2.0)
    (line,) = kept_bases.describe_dependents(tmp_path, "pretrain")
    assert "midtrain of this run keep what they learned" in line and f"train midtrain {tmp_path} --resume never" in line
    assert "bases" not in line
    save(tmp_path, "rl", 2, 3.0, base)
    (line,) = kept_bases.describe_dependents(tmp_path, "pretrain")
    assert "midtrain, rl of this run" in line and "the adapters of rl belong to step-00000004 of pretrain" in line
    assert str(tmp_path / "bases") in line and kept_bases.describe_dependents(tmp_path, "midtrain") != []
