"""Tests the comparison of an export with its original."""

import math

import torch

from fledgling.export import parity, write_hf


def test_parity_detects_a_changed_weight(make, tokenizer, tmp_path, monkeypatch):
    continuations, generate_greedy = [], parity.generate_greedy
    monkeypatch.setattr(parity, "generate_greedy", lambda *args: continuations.append(args) or generate_greedy(*args))
    model = make("fledgling")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    rows = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert rows[0].max_difference == 0 and rows[0].greedy_matches == rows[0].greedy_tokens == 120
    assert all(row.max_difference < 1e-5 and row.greedy_matches == row.greedy_tokens for row in rows)
    assert len(continuations) == 1, "all readers read the same continuation"
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.roll(1, 0))
    changed = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert all(row.max_difference > 0.1 and row.greedy_matches < row.greedy_tokens for row in changed)
    assert not any(row.greedy_ties for row in changed), "other weights are no matter of rounding"


def test_a_difference_that_is_no_number_is_not_hidden(make):
    """Python's max(0.0, nan) is 0.0: an export whose logits overflow would have looked exact."""
    model = make("fledgling")

    def overflowing(tokens: list[int]) -> torch.Tensor:
        logits = model.compute_logits(model(torch.tensor([tokens])))[0].detach().clone()
        logits[-1, 0] = torch.nan
        return logits

    assert math.isnan(parity.compare_logits(model, overflowing, "overflows").max_difference)
