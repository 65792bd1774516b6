"""A page is compared with its model: what the quantization changed, and where there is no Node, that it was not run."""

from fledgling.export import page_parity
from fledgling.export.page_weights import quantize_for_page


def test_the_quantization_is_compared_and_a_missing_node_is_reported(make, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(page_parity, "find_node", lambda: None)
    model = make("fledgling", depth=1, context=32)
    weights = quantize_for_page(model, {}, 8, 32, False)
    (found,) = page_parity.compare_html(model, weights, tmp_path / "page.html", None)
    assert found.reference == "in 8 bits, run by fledgling" and 0 < found.max_difference < 1
    assert "the page itself is not compared" in capsys.readouterr().err


def test_the_page_is_compared_with_the_quantized_weights(make, monkeypatch, tmp_path):
    weights = quantize_for_page(make("fledgling", depth=1, context=32), {}, 8, 32, False)
    model, called = weights.load_reference(), []
    monkeypatch.setattr(page_parity, "find_node", lambda: "20.20.2")

    def call_in_node(page, requests):
        called.append(page)
        return requests

    monkeypatch.setattr(page_parity, "call_in_node", call_in_node)
    monkeypatch.setattr(
        page_parity, "read_logits", lambda request, size: page_parity.torch.zeros(len(request[1]), size)
    )
    (found,) = page_parity.compare_html(model, weights, tmp_path / "page.html", None)
    assert called and found.reference.endswith("engine in node 20.20.2") and found.max_difference > 0
