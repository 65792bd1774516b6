"""The models of one server: their names."""

from fledgling.serve.services import find_free_name


def test_every_checkpoint_of_a_server_has_a_name_of_its_own():
    taken: list[str] = []
    for stage in ("rl", "sft", "sft", ""):
        taken.append(find_free_name("quickstart", stage, taken))
    assert taken == ["quickstart", "quickstart-sft", "quickstart-sft-3", "quickstart-4"]
