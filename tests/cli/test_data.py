"""`fledgling data`: the table of sets, a source's figures, and one line for a mistake."""

import json

import pytest

from fledgling.cli import main


def test_info_lists_the_public_sets(tmp_path, capsys):
    assert main(["data", "info", "--data-dir", str(tmp_path), "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["root"] == str(tmp_path) and {"fineweb-edu", "climbmix"} <= {s["name"] for s in reported["sets"]}
    assert all(entry["files"] == entry["bytes"] == 0 for entry in reported["sets"])
    assert main(["data", "info", "--data-dir", str(tmp_path)]) == 0
    assert "not fetched" in capsys.readouterr().out


def test_info_counts_the_documents_of_a_file(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"body": "Text number {n}, of its own."}}\n' for n in range(200)) + "{\n")
    assert main(["data", "info", str(path), "--column", "body", "--json"]) == 0
    output, notice = capsys.readouterr()
    figures = json.loads(output)
    assert figures["documents"] == 200 and figures["validation_documents"] > 0
    assert "1 malformed (first: rows.jsonl:201)" in notice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["fetch", "climbmx"], 'did you mean "climbmix"'),
        (["fetch", "climbmix", "--endpoint", "http://127.0.0.1:9"], "cannot reach http://127.0.0.1:9"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["data", *arguments, "--data-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1
