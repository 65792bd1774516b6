"""What every run of the tests does less of, in each of its processes: see `shorten_preparation`."""

import functools
from dataclasses import replace

from fledgling import tasks
from fledgling.evals import samples
from fledgling.runtime import device
from fledgling.text import compression
from fledgling.train import data_preparer


@functools.cache
def shorten_preparation() -> None:
    """Makes the preparation of a run as small as its text, once in a process.

    A run's tokenizer is trained on a tenth of the conversations and its conversations are written in smaller batches.
    Its samples and its answers to the exams of skills, which an untrained model never ends, have a few tokens.
    The product that the machine's peak is measured with is timed once in a process, not in each stage. Tests make up
    peaks, which are not compared with each other.
    """
    data_preparer.TOKENIZER_CONVERSATIONS, data_preparer.CONVERSATIONS_PER_BATCH = 400, 200
    for name in ("sample_continuations", "sample_chat_replies"):
        setattr(samples, name, functools.partial(getattr(samples, name), max_new_tokens=8))
    load_skill = tasks._load_skill
    tasks._load_skill = functools.cache(lambda name: replace(load_skill(name), max_new_tokens=16))  # type: ignore
    compression.PPMD_MEMORY = 1 << 24
    device.measure_peak_flops = functools.cache(device.measure_peak_flops)  # type: ignore[assignment]
    device.compare_with_known_peak = lambda key, peak, measure_again: (peak, "")
