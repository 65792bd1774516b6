"""Texts for property tests: names of special tokens in every form, white space and digits, and any characters."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fledgling.text.tokenizer import SPECIAL_TOKENS

many_examples = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
any_text = st.text(st.characters(exclude_categories=("Cs",)))
# Names of special tokens complete, in pieces and joined, and the white space and digits that splits depend on.
fragments = ("<|", "|>", "<", "|", "bos", "user_start", "_", ">", "'s", "a", " B", "é")
turning = (" ", "\n", "\r\n", "\t", "\0", "1", "23", "²", "½")
pieces = st.sampled_from([*SPECIAL_TOKENS, *fragments, *turning])
hostile_text = st.lists(pieces, max_size=12).map("".join) | any_text
