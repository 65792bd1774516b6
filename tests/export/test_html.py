"""The page in one file, its script run in Node: logits, greedy tokens, tokenizer, calculator, sampling and turns."""

from __future__ import annotations

import random
import re
import unicodedata
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
import pytest
import torch

from fledgling.config import ModelConfig, UserError, load_recipe
from fledgling.export import html
from fledgling.export.html import make_model_file, render_model_page, require_supported, write_html
from fledgling.export.node_calls import call_in_node, find_node, read_logits
from fledgling.export.page_weights import PageWeights, quantize_for_page
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams, hash_to_uniform, sample_tokens
from fledgling.model.transformer import Transformer
from fledgling.serve.page_files import PAGE
from fledgling.text.bpe import byte_alphabet, split_pattern
from fledgling.text.calculator import calculate
from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.tokenizer_json import SPECIAL_TOKENS, build_tokenizer_json
from fledgling.text.truncation import drop_oldest_turns
from fledgling.text.unicode_classes import make_probe
from tests.chain_model import list_adding_successors, make_chain
from tests.export.conftest import random_model

needs_node = pytest.mark.skipif(find_node() is None, reason="no Node on this machine")


def write_page(folder: Path, model: Transformer, tokenizer: Tokenizer, bits: int = 4, embedding: bool = False):
    """Writes the page of a model; returns its path and the model in fp32 that it must equal."""
    weights = quantize_for_page(model, {}, bits, 32, embedding)
    path = write_html(folder / "page.html", PAGE, weights, tokenizer, "small")
    return path, weights.load_reference()


@torch.inference_mode()
def list_choices(model: Transformer, tokens: list[int]) -> list[int]:
    """Returns the most probable token after each of a text's: where they are the text's next, it is a greedy one."""
    return model.compute_logits(model(torch.tensor([tokens])))[0].argmax(-1).tolist()


@needs_node
@pytest.mark.parametrize("bits", [4, 8])
def test_greedy_tokens_are_the_engines_over_the_same_quantized_weights(bits, make, tokenizer, tmp_path):
    page, reference = write_page(tmp_path, make("fledgling", context=256, kv_heads=2), tokenizer, bits, bits == 8)
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in ("the quick brown fox", "12 times", "é and \n\n")]
    answers = call_in_node(page, [["greedy", prompt, 200] for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 200 and answer == list_choices(reference, prompt + answer)[len(prompt) - 1 : -1]
    assert len({token for answer in answers for token in answer}) > 20


VARIANTS = [  # of the default family, as recipes can switch on, and of the others
    ("fledgling", {"kv_heads": 1, "flash_norm": True, "embedding_norm": False, "logit_softcap": 0.0}),
    ("fledgling", {"value_embeddings": 2, "residual_scalars": True, "window_pattern": "SL", "window_size": 9}),
    ("fledgling", {"activation": "swiglu", "intermediate_size": 192, "tie_embeddings": True, "rope_pattern": "RN"}),
    ("fledgling", {"activation": "gelu", "bias": True, "head_dim": 32, "qk_norm_weights": "head"}),
    (
        "fledgling",
        {
            "norm_placement": "both",
            "norm": "layer",
            "qk_norm_weights": "layer",
            "rope_type": "yarn",
            "rope_factor": 4.0,
        },
    ),
    ("fledgling", {"norm_placement": "post", "norm": "rms_weighted", "activation": "geglu", "intermediate_size": 192}),
    (
        "fledgling",
        {
            "window_pattern": "SL",
            "window_size": 20,
            "rope_local_base": 500.0,
            "embedding_norm": False,
            "embedding_multiplier": 8.0,
        },
    ),
    (
        "fledgling",
        {"parallel_residual": True, "partial_rotary_factor": 0.5, "activation": "gelu_exact", "qk_norm": False},
    ),
    ("fledgling", {"preset": "nanochat-2026", "depth": 4}),
    ("fledgling", {"preset": "small-2026", "depth": 3}),
    (
        "fledgling",
        {"head_gates": True, "exclusive_attention": True, "skip_scalars": True, "back_out": True, "smear": True}
        | {"depth": 5, "kv_heads": 2, "logit_shift": 4.0},
    ),
    ("gpt2", {}),
    ("llama", {"kv_heads": 2, "intermediate_size": 192}),
]


@needs_node
@pytest.mark.parametrize(
    ("family", "fields"), VARIANTS, ids=lambda value: value if isinstance(value, str) else ",".join(value)
)
def test_every_part_that_a_recipe_can_switch_on_gives_the_logits_of_the_model(
    family, fields, make, tokenizer, tmp_path
):
    page, reference = write_page(tmp_path, make(family, **fields), tokenizer)
    tokens = torch.randint(330, (1, 70), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference.compute_logits(reference(tokens))[0]
    one_by_one, in_chunks = call_in_node(page, [[name, tokens[0].tolist()] for name in ("logits", "lastLogits")])
    most = 2e-4 * max(1.0, float(expected.abs().max()))
    assert (read_logits(one_by_one, 330) - expected).abs().max() < most
    assert (read_logits(in_chunks, 330) - expected[-1:]).abs().max() < most


@needs_node
def test_a_prompt_that_begins_like_the_one_before_gives_what_it_gives_alone(make, tokenizer, tmp_path):
    page, reference = write_page(tmp_path, make("fledgling"), tokenizer)
    tokens = list(range(300, 240, -1))
    with torch.inference_mode():
        expected = reference.compute_logits(reference(torch.tensor([tokens])))[0]
    before = [*tokens[:30], *range(40)]
    _, one_by_one, _, last = call_in_node(
        page, [["greedy", before, 1], ["logits", tokens], ["greedy", before, 1], ["lastLogits", tokens]]
    )
    assert (read_logits(one_by_one, 330) - expected).abs().max() < 1e-3
    assert (read_logits(last, 330) - expected[-1:]).abs().max() < 1e-3


HARD_TEXTS = [
    "", " ", "\n", "\r\n\r\n", "   \n  x", "a  b   c", "\ttabs\t\n", "trailing   ",
    "don't DON'T we'LL 'twas it'ſ 'RE 'x it'ſxy 'ſxy", "1234567890",
    "3.14159", "１２３４", "x1y22z333", "½ ² Ⅷ ٣٤٥", "naïve café",
    "e\u0301 combining", "中文字符 日本語 한국어", "🦊🦊 👩‍👩‍👧", "مرحبا بالعالم", "\u200bzero\u200bwidth", "\ufeffBOM",
    "\x85next\x85line", "\xa0nbsp\u3000wide", "\x00\x01\x1c\x1f", "\ud800 lone \udfff",
    "<|bos|><|user_start|>hi<|assistant_end|>", "<script>alert(1)</script>", "==== ---- !!!\n\n???",
    "a\u0345b ǅ ʰ ꟸ 𝒜𝟙", "x" * 500, "ab" * 300, " the the  the", "\u2028line\u2029para", "don’t", "٪٫", "fox's\r\n'S",
    "'", "''s", " 's", "_a_b", "$5,000.00", "\u0bcd\u0b95\u0bcd", "\U0010ffff\U000e0001",
]  # fmt: skip


def list_texts() -> list[str]:
    """Hard texts, a probe of characters of every category of Unicode, and random mixtures."""
    generator = random.Random(0)
    by_category: dict[str, list[str]] = {}
    for code in generator.sample([c for c in range(0x30000) if not 0xD800 <= c < 0xE000], 20_000):
        by_category.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    probes = [make_probe(c) for characters in by_category.values() for c in characters[:12]]
    alphabet = ["a", "Z", "9", " ", "\n", "\r", "'", "s", "ll", ".", "\t", "é", "中", "\xa0", "ſ", "the", " fox"]
    return HARD_TEXTS + probes + ["".join(generator.choices(alphabet, k=30)) for _ in range(200)]


@needs_node
@pytest.mark.parametrize("max_digits", [1, 2, 3])
def test_text_has_the_ids_that_the_tokenizer_gives_it(max_digits, tmp_path):
    corpus = [*HARD_TEXTS[6:], "aſxy ſxy bſxy " * 40, "the quick brown fox isn't 12 345 times as quick, é 中文 " * 20]
    tokenizer = Tokenizer.train(
        [text.encode("utf-8", "replace").decode() for text in corpus], 400, max_digits=max_digits
    )
    page, _ = write_page(tmp_path, random_model(ModelConfig(tokenizer.vocab_size, 1, 64, 1, 1, 16)), tokenizer)
    texts = list_texts()
    ids = call_in_node(page, [["encode", text] for text in texts])
    different = [text for text, found in zip(texts, ids, strict=True) if found != tokenizer.encode(text)]
    assert different == [] and len(texts) > 400


EXPRESSIONS = [
    "", " ", "1", "2+3", "1,000*2", "10,00", "1,0000", "1/3", "2/3", "-1/3", "0.1+0.2", ".5", "5.", "1e5", "2**10",
    "2**-2", "(-8)**(1/3)", "2**0.5", "0**0", "0**-1", "1/0", "1/(2-2)", "((((((((1))))))))",
    "(" * 17 + "1" + ")" * 17, "-" * 17 + "1", "--1", "+-+1", "2*-3", "2--3", "3 4", "3+", "*3", "()", "(1", "1)",
    "9" * 30, "9" * 31, "9" * 30 + "**2", "10**40", "10**39", "2**256", "2**257", "7**300", "(2**200)**9", "1/7**9",
    "1" * 201, "1 + 1", "\n1\t+\r1 ", "\x0b1", "\x1c1\x1d", "\x85 1 \u3000", "\ufeff1", "１", "1\xa0+1", "a", "2^3",
    "0.0000005", "0.0000015", "2.5000005", "-0.0000001", "1/8", "1000000*1000000", "2**3**2", "-2**2", "12,345.678,9",
    "1.2.3", "1..2", ",1", "1,", "(1)(2)", "1_000", "5 % 2",
]  # fmt: skip


@needs_node
def test_the_calculator_gives_the_same_value_or_error(make, tokenizer, tmp_path):
    page, _ = write_page(tmp_path, make("fledgling", depth=1), tokenizer)
    generator = random.Random(1)
    symbols = ["1", "2", "7", "10", "0.5", "3,000", "+", "-", "*", "/", "**", "(", ")", " ", "0", ".25"]
    texts = EXPRESSIONS + ["".join(generator.choices(symbols, k=generator.randint(1, 9))) for _ in range(1500)]
    found = call_in_node(page, [["calculate", text] for text in texts])
    expected = [calculate(text) for text in texts]
    assert [row for row in zip(texts, found, expected, strict=True) if row[1] != row[2]] == []
    assert sum(not value.startswith("error") for value in expected) > 200


@needs_node
def test_sampling_takes_the_engines_random_number_and_token(make, tokenizer, tmp_path):
    page, _ = write_page(tmp_path, make("fledgling", depth=1), tokenizer)
    generator = torch.Generator().manual_seed(3)
    settings = [{"temperature": 0}, {}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}]
    settings.append({"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01})
    calls, expected = [], []
    for number in range(60):
        logits, given = torch.randn(40, generator=generator) * 3, settings[number % len(settings)]
        noise = hash_to_uniform(*(np.array([value], np.uint64) for value in (number, 0, 7 * number)))
        calls += [["hashToUniform", number, 7 * number], ["sample", logits.tolist(), given, float(noise[0])]]
        ids, logprobs = sample_tokens(logits[None], SamplingParams(**given), torch.from_numpy(noise))
        expected += [float(noise[0]), {"id": int(ids), "logprob": pytest.approx(float(logprobs), abs=1e-5)}]
    assert call_in_node(page, calls) == expected


@needs_node
def test_prompts_and_dropped_turns_are_those_of_the_server(make, tokenizer, tmp_path):
    page, _ = write_page(tmp_path, make("fledgling", depth=1), tokenizer)
    parts = [{"type": "text", "text": "so "}, {"type": "python", "text": "1+1"}, {"type": "output", "text": "2"}]
    turns = [
        [{"role": "user", "content": f"the fox {n} <|user_end|>"}, {"role": "assistant", "content": "dog " * n}]
        for n in range(1, 10)
    ]
    turns[3][1] = {"role": "assistant", "content": parts}
    last, system = [{"role": "user", "content": "again?"}], [{"role": "system", "content": "be quick"}]
    cases = [[*head, *chain.from_iterable(turns[first:]), *last] for head in ([], system) for first in (0, 3, 7, 9)]
    cases += [[{"role": "user", "content": "the fox " * 60}], turns[3], [*turns[0], *turns[1]]]
    cases += [
        [*system, *chain.from_iterable(turns[5:]), {"role": "user", "content": "dog " * count}]
        for count in range(1, 25)
    ]
    most = [None, *range(1, 41, 3), 1000]
    sent = [
        [{**m, "content": None, "parts": m["content"]} if isinstance(m["content"], list) else m for m in case]
        for case in cases
    ]
    found = call_in_node(
        page, [["prompt", case] for case in sent] + [["dropOldestTurns", case, n] for case in sent for n in most]
    )
    assert found[: len(cases)] == [render_prompt(tokenizer, {"messages": case}) for case in cases]
    expected = [drop_oldest_turns(tokenizer, case, 128, n) for case in cases for n in most]
    assert [(len(row["messages"]), row["dropped"]) for row in found[len(cases) :]] == [
        (len(kept), n) for kept, n in expected
    ]
    assert len({n for _, n in expected}) > 3


@needs_node
def test_an_answer_calls_the_calculator_as_the_engine_does(tokenizer, tmp_path):
    adder = make_chain(tokenizer, list_adding_successors(tokenizer, "!"), 64).source
    page, reference = write_page(tmp_path, adder, tokenizer)
    messages = [{"role": "user", "content": "add"}]
    greedy = SamplingParams(temperature=0)
    completion = Engine(reference, tokenizer).generate([render_prompt(tokenizer, {"messages": messages})], greedy)[0]
    chunks = call_in_node(page, [["answer", {"messages": messages, "temperature": 0, "top_logprobs": 2}]])[0]
    fields = re.search(r"// Yields \{(.*)\} for every chunk", (PAGE / "api.js").read_text(encoding="utf-8"))
    assert fields and set(chunks[-1]) == set(fields[1].split(", ")), "a chunk has what the server's API gives the page"
    assert chunks[-1]["reason"] == completion.finish_reason == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == len(completion.tokens)
    shown = [(part["type"], part["text"]) for chunk in chunks for part in chunk["parts"]]
    assert "".join(text for kind, text in shown if kind == "output") == "5"
    assert "".join(text for kind, text in shown if kind == "python") == "2+3"
    assert "".join(text for kind, text in shown if kind == "text") == "=!"
    tokens = [token for chunk in chunks for token in chunk["tokens"]]
    assert [bool(token["top_logprobs"]) for token in tokens] == [not forced for forced in completion.forced]


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """Returns a tokenizer of any size whose merges are pairs of bytes."""
    pairs = islice(product(byte_alphabet(), repeat=2), vocab_size - 256 - len(SPECIAL_TOKENS))
    return Tokenizer(build_tokenizer_json(list(pairs), split_pattern(2)))


SIZES = {  # depth, width, vocabulary, heads, context: bytes of the page, and whether --embedding is given
    "quickstart, 3 layers": ((3, 192, 1024, 2, 256), 2_600_000, False),
    "quickstart, 4 layers": ((4, 256, 1024, 2, 256), 4_000_000, True),
    "60 million": ((8, 640, 16384, 5, 1024), 45_000_000, True),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_as_small_as_promised(size, tmp_path):
    (depth, width, vocab_size, heads, context), most, embedding = SIZES[size]
    preset = load_recipe("quickstart").model.preset if size.startswith("quickstart") else "nanochat-2025"
    config = ModelConfig(vocab_size, depth, width, heads, heads, context, preset=preset)
    model = random_model(config, scale=0.05)
    page, _ = write_page(tmp_path, model, make_tokenizer(config.vocab_size), 4, embedding=embedding)
    assert page.stat().st_size <= most, f"{page.stat().st_size:,} bytes, {model.count_parameters():,} parameters"
    assert size.startswith("quickstart") or model.count_parameters() > 60_000_000


def test_what_the_page_cannot_run_is_one_line_at_export(make, tokenizer, tmp_path):
    weights = quantize_for_page(make("fledgling"), {}, 8, 32, False)
    narrow = PageWeights(ModelConfig(330, 1, 60, 10, 10, 16), weights.tensors, 8)
    with pytest.raises(UserError, match="multiple of 4"):
        write_html(tmp_path / "a.html", PAGE, narrow, tokenizer, "x")
    plain = Tokenizer({**tokenizer.tokenizer_json, "added_tokens": tokenizer.tokenizer_json["added_tokens"][:1]})
    other = Tokenizer({**tokenizer.tokenizer_json, "normalizer": {"type": "NFC"}})
    for given, message in ((plain, "chat model"), (other, "splits or encodes in another way")):
        with pytest.raises(UserError, match=message):
            make_model_file(weights, given, "x")
    with pytest.raises(UserError, match="already"):
        quantize_for_page(make("fledgling"), {"quantized": {"bits": 8}}, 4, None, False)
    assert not list(tmp_path.iterdir())


def test_a_feature_that_the_page_does_not_know_is_rejected_by_name(make, monkeypatch):
    require_supported(make("fledgling", smear=True).config)
    monkeypatch.setattr(html, "FEATURES", html.FEATURES - {"smear"})
    with pytest.raises(UserError, match=r"model\.smear"):
        require_supported(make("fledgling", smear=True).config)


def test_data_in_the_page_cannot_end_its_element(make, tokenizer):
    weights = quantize_for_page(make("fledgling", depth=1), {}, 4, None, False)
    name = "</script><script>alert(1)</script>"
    text = render_model_page(PAGE, make_model_file(weights, tokenizer, name, [name]), name)
    assert name not in text and text.count("<script") == text.count("</script") == 3
