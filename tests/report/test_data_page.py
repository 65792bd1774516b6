"""The page of `data inspect` shows what is learned as marked text, and nothing of the data becomes markup."""

from fledgling.report.data_page import build_data_page, list_facts

FOUND = {
    "source": "<b>own</b>.jsonl",
    "kind": "conversations",
    "contents": "2 files",
    "rows": 1200,
    "more_rows": True,
    "forms": {"ShareGPT": 1200},
    "left_out": {"rows": 3, "first": "own.jsonl:7: <i>bad</i>"},
    "changed": {"joined to the one before": 4},
    "typed_controls": 0,
    "unit": "tokens",
    "lengths": {"shortest": 5, "median": 40, "95 %": 90, "longest": 5000},
    "learned": 30,
    "total": 100,
    "cut": {"context": 256, "rows": 2, "tokens": 4800},
    "repeats": {"exact": 1, "near": None, "examples": [("own.jsonl:2", "own.jsonl:1")]},
    "overlap": {
        "gsm8k": {"items": 100, "overlapping": 1, "matches": [{"row": "own.jsonl:9", "words": "a <b> c"}]},
        "mmlu": {"missing": "no files"},
    },
    "examples": [
        {
            "place": "own.jsonl:1",
            "form": "ShareGPT",
            "pieces": [{"text": "<script>", "learned": False}, {"text": "<x>", "learned": True}],
        }
    ],
}


def test_the_page_marks_what_is_learned_and_escapes_everything(tmp_path):
    page = build_data_page(FOUND, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;<mark>&lt;x&gt;</mark>" in page and "1 of 100 items" in page
    for raw in ("<script>", "<x>", "<b>", "<i>"):
        assert raw not in page


def test_the_facts_say_what_is_left_out_cut_and_not_known():
    facts = dict(list_facts(FOUND))
    assert facts["left out"] == "3 rows; own.jsonl:7: <i>bad</i>" and "fledgling[inspect]" in facts["nearly the same"]
    assert facts["cut"] == "2 rows are longer than a row of 256 tokens; 4,800 tokens are beyond it"
    assert "not known" in dict(list_facts({**FOUND, "cut": None}))["cut"] and "1,200" in facts["read"]
