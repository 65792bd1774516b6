"""Small texts and tokenizers for the tests of this package, which read no data from elsewhere."""

import random

import pytest

from fledgling.text.tokenizer import Tokenizer

WORDS = """
the of and to in that it was for on with as his he be at by had not are but from or have an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man
Zürich naïve 서울 大きい don't WE'LL x1 _name def return print(x) == += 3.14 1984 12345 ½ ²³ ٣٤٥ 🐦 e.g. http://a.b
""".split()  # noqa: SIM905


def sample_texts(count: int = 300, seed: int = 0) -> list[str]:
    """Returns documents of words in random order, with code, other scripts, digits and all kinds of white space."""
    draw = random.Random(seed)
    gaps = (" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", " \r\n    ", ", ", "; ", ".\n")
    return ["".join(draw.choice(WORDS) + draw.choice(gaps) for _ in range(120)) for _ in range(count)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return sample_texts()


@pytest.fixture(scope="session", params=(1, 2, 3), ids=lambda digits: f"digits{digits}")
def tokenizer(request, texts) -> Tokenizer:
    return Tokenizer.train(texts, 512, max_digits=request.param)
