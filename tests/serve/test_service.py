"""The service's own decisions: names, limits of a prompt, and the defaults of sampling."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from fledgling.infer.sampling import SamplingParams
from fledgling.serve.schemas import BadRequest, ChatRequest
from fledgling.serve.service import ParsedRequest, Service, find_service
from fledgling.serve.worker import GenerationJob

CONTEXT = 40


@pytest.fixture
def service(tokenizer) -> Service:
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=tokenizer.vocab_size))
    engine = SimpleNamespace(context=CONTEXT, model=model)
    worker = SimpleNamespace(engine=engine, load=3, max_queue_size=16, max_batch_size=8)
    return Service(worker, tokenizer, "owl", created=1)  # type: ignore[arg-type]


def make_body(**fields) -> ChatRequest:
    return ChatRequest(messages=[{"role": "user", "content": "hi"}], **fields)  # type: ignore[list-item]


def test_only_the_served_model_is_answered(service):
    assert service.describe_model("owl") == service.describe_model() and service.describe_model()["id"] == "owl"
    service.check_model_name("")
    with pytest.raises(BadRequest, match="no model 'crow'") as raised:
        service.check_model_name("crow")
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "model_not_found", "model")


def test_the_error_of_an_unknown_model_lists_every_model_that_is_served(service):
    others = [replace(service, model_name=name) for name in ("pirate", "poet")]
    served = [service, *others]
    assert [find_service(served, name).model_name for name in ("", "owl", "poet")] == ["owl", "owl", "poet"]
    with pytest.raises(BadRequest, match=r"no model 'crow' on this server; it serves 'owl', 'pirate', 'poet'$"):
        find_service(served, "crow")


def test_a_model_is_known_with_the_tag_of_ollama_too(service):
    tagged = replace(service, model_name="crow:latest")
    served = [service, replace(service, model_name="poet"), tagged]
    names = {"owl:latest": "owl", "poet:latest": "poet", "crow:latest": "crow:latest", ":latest": "owl"}
    assert {name: find_service(served, name).model_name for name in names} == names
    assert service.describe_model("owl:latest")["id"] == "owl"
    with pytest.raises(BadRequest, match="no model 'owl:8b'"):
        service.check_model_name("owl:8b")


def test_both_names_of_the_repetition_penalty_are_honored(service):
    def penalty(**fields) -> float:
        return service.make_sampling_params(make_body(**fields), [1], 2, 0).repetition_penalty

    assert penalty(repeat_penalty=1.12) == penalty(repetition_penalty=1.12) == 1.12
    assert penalty(repeat_penalty=1.3, repetition_penalty=1.3) == 1.3 and penalty() == 1
    with pytest.raises(BadRequest, match=r"repeat_penalty: 1\.1, and repetition_penalty is 1\.2: give one of them"):
        penalty(repeat_penalty=1.1, repetition_penalty=1.2)


def test_whole_numbers_and_a_top_p_of_zero_are_read_as_other_servers_read_them(service):
    body = make_body(max_tokens=8.0, seed=1.0, top_k=5.0, n=2.0, top_p=0)
    assert (body.max_tokens, body.seed, body.top_k, body.n) == (8, 1, 5, 2) and type(body.seed) is int
    assert 0 < service.make_sampling_params(body, [1], 2, 0).top_p < 1e-3
    with pytest.raises(ValidationError):
        make_body(seed=1.5)


def test_health_reports_the_load_and_its_limits(service):
    expected = {"status": "ok", "model": "owl", "load": 3, "max_queue_size": 16, "max_batch_size": 8}
    assert service.describe_health() == expected


def test_an_answer_is_as_long_as_requested_or_as_fits(service):
    prompt = [1] * 30
    assert service.make_sampling_params(make_body(), prompt, 4, 0).max_new_tokens == 4
    assert service.make_sampling_params(make_body(), prompt, None, 0).max_new_tokens == CONTEXT - 30
    assert service.make_sampling_params(make_body(), prompt, 999, 0).max_new_tokens == CONTEXT - 30
    with pytest.raises(BadRequest):
        service.make_sampling_params(make_body(), [1] * CONTEXT, 1, 0)


def test_fields_of_the_body_become_sampling_parameters(service):
    body = make_body(temperature=0.5, top_p=0.9, top_k=7, seed=11, logit_bias={"3": -2})
    sampling = service.make_sampling_params(body, [1], 2, 5)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 7, 11)
    assert sampling.num_top_logprobs == 5 and dict(sampling.logit_bias) == {3: -2.0}


def test_more_answers_than_the_queue_holds_are_an_error(service):
    service.check_num_choices(16)
    with pytest.raises(BadRequest, match="17 answers are more"):
        service.check_num_choices(17)


def test_usage_counts_each_prompt_once_and_every_answer():
    jobs = [GenerationJob([1, 2, 3], SamplingParams(), n) for n in (2, 3)]
    parsed = ParsedRequest(jobs, False, False, False, [], "id", 1)
    assert len(parsed.choices) == 5 and parsed.first_choice_indices == [0, 2] and parsed.prompt_tokens == 6
    parsed.choices[1].tokens.extend([4, 5])
    parsed.choices[4].tokens.append(6)
    assert parsed.completion_tokens == 3
