"""`data overlap` from the command line: exam items that occur in training text."""

import json

from tests.made_up_sets import write_rows


def test_overlap_lists_the_items_that_occur_in_training_text(trained_run, run_command, tmp_path):
    data = trained_run[1]
    row = json.loads((data / "evals/gsm8k/test.jsonl").read_text().splitlines()[3])
    write_rows(tmp_path / "text.jsonl", [{"text": "Nothing of interest."}, {"text": f"As they say: {row['question']}"}])
    code, out_text, _ = run_command(
        *("data", "overlap", tmp_path / "text.jsonl", "gsm8k", "--tasks", "gsm8k,mmlu"),
        *("--data-dir", data, "--json", "--words", 9),
    )
    sets = json.loads(out_text)["sets"]
    assert code == 0 and [m["item"] for m in sets["gsm8k"]["matches"]] == [3] and sets["mmlu"]["overlapping"] == 0
    assert sets["gsm8k"]["matches"][0]["origin"] == "text.jsonl:2"
    code, out_text, err = run_command("data", "overlap", tmp_path / "text.jsonl", "--tasks", "spelling")
    assert code == 1 and "spelling is generated" in err
