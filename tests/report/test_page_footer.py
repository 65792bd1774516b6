"""What a page says of itself, and the page that is set aside when its stage is restarted or resumed."""

import re
from pathlib import Path

import fledgling
from fledgling.record import write_text
from fledgling.report import page_footer
from fledgling.report.page_footer import NO_DIGEST, add_digest, is_as_written, set_aside_page

IMPORT = re.compile(r"^\s*from fledgling\.(\w+)", re.MULTILINE)


def test_the_digest_is_of_the_page_as_a_file_has_it(tmp_path):
    write_text(tmp_path / "a.html", add_digest(f"<p>\udcff</p>{NO_DIGEST}"))
    assert is_as_written((tmp_path / "a.html").read_bytes().decode("utf-8")) is True


def test_a_page_is_set_aside_by_the_stages_it_has_steps_of(tmp_path):
    page, lines = tmp_path / "report.html", []
    set_aside_page(tmp_path, "sft", lines.append)
    page.write_text('<footer data-lines="{&#34;sft/metrics&#34;: 3, &#34;rl/metrics&#34;: 0}" data-made="1.0">')
    for stage in ("pretrain", "rl"):
        set_aside_page(tmp_path, stage, lines.append)
    assert page.exists() and not lines
    set_aside_page(tmp_path, "sft", lines.append)
    assert not page.exists() and (tmp_path / "report.older.html").exists() and "has steps of sft" in lines[0]
    page.write_text("<footer data-lines=nonsense>")
    set_aside_page(tmp_path, "sft", lines.append)
    assert page.exists()


def test_the_code_of_a_page_is_that_of_all_packages_that_report_reads():
    package = Path(fledgling.__file__).parent
    files = [file for name in page_footer.CODE for file in (package / name).rglob("*.py")]
    read = {name for file in files for name in IMPORT.findall(file.read_text("utf-8"))}
    assert read <= {*page_footer.CODE, "runtime"} | {"__version__"}, read
    assert re.fullmatch(r"[0-9a-f]{16}", page_footer.hash_code())
