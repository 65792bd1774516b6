"""Samples: one text for each fixed prompt, the same every time."""

from fledgling.evals import samples


def test_every_prompt_gets_the_same_greedy_text_each_time(engine):
    for sample, prompts in (
        (samples.sample_continuations, samples.TEXT_PROMPTS),
        (samples.sample_chat_replies, samples.SAMPLE_QUESTIONS),
    ):
        texts = sample(engine, max_new_tokens=4)
        assert [prompt for prompt, _ in texts] == list(prompts)
        assert sample(engine, max_new_tokens=4) == texts
