"""Options that have an effect only together with another are rejected without it, in one line."""

import pytest

from fledgling.cli import main


@pytest.mark.parametrize(
    "words",
    [
        ["train", "pretrain", "quickstart", "--nodes", "2"],
        ["train", "pretrain", "quickstart", "--rendezvous", "node0:29400"],
        ["train", "pretrain", "quickstart", "--restarts", "7"],
        ["speedrun", "quickstart", "--nodes", "2", "--rendezvous", "node0:29400"],
        ["speedrun", "quickstart", "--restarts", "0"],
        ["speedrun", "quickstart", "--gpu", "h100"],
        ["speedrun", "quickstart", "--minutes", "3", "--price", "2"],
        ["plan", "quickstart", "--length", "16"],
        ["plan", "quickstart", "--minutes", "3", "--price", "-2"],
        ["plan", "quickstart", "--hours", "3", "--link", "pcie5"],
        ["plan", "quickstart", "--minutes", "3", "--layout", "whole-logits"],
        ["plan", "quickstart", "--inference", "--minutes", "3"],
        ["plan", "quickstart", "--conversations", "3"],
        ["plan", "quickstart", "--inference", "--mfu", "0.3"],
        ["plan", "quickstart", "--inference", "--price", "2"],
        ["plan", "quickstart", "--inference", "--gpus", "2"],
        ["plan", "quickstart", "--inference", "--link", "pcie5"],
    ],
    ids=" ".join,
)
def test_an_option_without_effect_is_rejected(words, capsys):
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "has no effect with" in err


def test_a_machine_that_does_not_answer_is_one_line(capsys, monkeypatch):
    from torch.distributed.elastic.rendezvous import registry
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

    def fail(parameters):
        raise RendezvousConnectionError("The connection to the C10d store has failed.")

    monkeypatch.setattr(registry, "get_rendezvous_handler", fail)
    words = ["--gpus", "1", "--nodes", "2", "--rendezvous", "nowhere:29400", "--set=run.device=cpu"]
    assert main(["train", "pretrain", "quickstart", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --rendezvous nowhere:29400") and error.count("\n") == 1
