"""Settings of every test: no time limit for an example of hypothesis, a cache of its own, and which tests run where.

A busy machine would exceed hypothesis' time limit. Speeds that were measured on this machine, and what its user typed,
are neither read nor written. The slowest tests of a kind whose smaller members always run are left to `make test-all`.
"""

import contextlib
import gc
import importlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers: one thread each, and none that waits busily
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The same examples in every run: a commit does not fail for what another one did. `make test-all` draws new ones.
settings.register_profile("fledgling", deadline=None, derandomize=not os.environ.get("FLEDGLING_FULL"))
settings.load_profile("fledgling")

FULL_SIZE = (  # each has a smaller member that always runs
    "test_unicode_classes.py::test_every_character_has_the_same_ids_in_a_batch_and_alone[all-1]",
    "test_unicode_classes.py::test_every_character_has_the_same_ids_in_a_batch_and_alone[all-2]",
    "test_unicode_classes.py::test_every_character_has_the_same_ids_in_a_batch_and_alone[all-3]",
    "test_gpu.py::test_a_stopped_run_resumes_where_it_was",
    "test_round_sampler.py::test_the_optimum_is_reached_with_stale_answers_too",
    "test_algorithm.py::test_the_optimum_is_reached_from_a_random_start[two steps-ppo]",
    "test_algorithm.py::test_the_optimum_is_reached_from_a_random_start[copy-ppo]",
    "test_algorithm.py::test_the_optimum_is_reached_from_a_random_start[copy-grpo]",
    "test_algorithm.py::test_the_optimum_is_reached_from_a_random_start[two steps-grpo]",
    "test_algorithm.py::test_the_optimum_is_reached_from_a_random_start[bandit-ppo]",
    "test_algorithm.py::test_the_optimum_is_not_reached_with_the_sign_flipped[ppo]",
    "test_algorithm.py::test_a_variant_reaches_the_optimum_of_the_bandit[cispo]",
    "test_algorithm.py::test_a_variant_reaches_the_optimum_of_the_bandit[gspo]",
    *(f"test_eval.py::test_two_ranks_give_the_results_of_one[{name}]" for name in ("chat", "passk", "bpb", "core")),
    "test_dry_run.py::test_a_scaled_down_recipe_runs_to_its_report[d20-8xh100]",
    "test_any_ranks.py::test_any_number_of_ranks_gives_the_same_weights[8]",
    "test_any_ranks.py::test_any_number_of_ranks_gives_the_same_weights[4]",
    "test_features.py::test_a_run_resumes_as_if_it_had_not_stopped[options1]",
    "test_families_train.py::test_every_family_learns_in_pretraining_and_reinforcement[gpt2]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[grpo in passes]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[gspo]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[cispo]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[dr_grpo]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[ipo]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[simpo]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[orpo]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[kto]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[midtrain]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[ppo]",
    "test_campaigns.py::test_runs_killed_at_random_moments_resume_with_the_same_bits",
    "distill/test_build.py::test_two_ranks_learn_the_same_bits",
    "distill/test_build.py::test_a_stage_that_was_stopped_ends_with_the_same_bits[text]",
    "distill/test_build.py::test_a_stage_that_was_stopped_ends_with_the_same_bits[rounded]",
    "test_optimizer.py::test_ranks_agree_resume_elsewhere_and_survive_a_broken_gradient[4]",
    "test_sharded.py::test_ranks_send_what_the_planner_says[4-2]",
    "test_resume_elsewhere.py::test_sharded_weights_are_evaluated_and_sampled_like_whole_ones",
    "test_launch_files.py::test_the_slurm_job_trains_on_two_nodes_and_is_queued_again_before_its_time_is_up",
    "test_end_to_end.py::test_a_compiled_run_has_the_losses_of_an_eager_one",
    "test_budgeted.py::test_a_compiled_run_within_a_budget_has_the_memory_of_one_without",
    *(
        f"test_open_models.py::test_an_adapted_class_is_the_same_here_in_transformers_and_in_peft[{name}]"
        for name in ("mistral", "qwen2", "qwen3", "smollm3", "olmo2", "olmo3", "gpt_neox", "gpt_neox, in sequence")
    ),
    *(
        f"test_open_models.py::test_an_adapted_class_is_the_same_here_in_transformers_and_in_peft[llama{how}]"
        for how in (" with wide heads", ", linear", ", yarn")
    ),
    "test_watchdog.py::test_a_stopped_main_rank_is_named_and_the_run_ends_with_the_same_bits",
    "test_families_train.py::test_a_tied_model_resumes_as_if_it_had_not_stopped",
    "test_onnx.py::test_onnxruntime_writes_the_same_tokens[gpt2-fields1]",
    *(
        f"test_mlx.py::test_mlx_lm_reads_an_open_class[{name}]"
        for name in ("llama", "llama, yarn", "smollm3", "olmo2", "phi3", "gpt_neox")
    ),
    *(
        f"test_llama_cpp.py::test_an_open_class_runs_in_llama_cpp_and_comes_back[{name}]"
        for name in ("llama with wide heads", "llama, linear", "llama, yarn", "mistral", "olmo3", "gpt_neox")
    ),
    "test_html.py::test_the_page_is_as_small_as_promised[60 million]",
    "test_memory_of_ranks.py::test_measured_memory_is_the_layouts",
    "test_native.py::test_neon_computes_what_avx2_computes",
    "test_page_faults.py::test_random_faults_never_stop_the_page_and_lose_no_finished_turn[200]",
    *(
        f"test_page_faults.py::test_a_question_after_a_failed_answer_is_answered[{fault}]"
        for fault in (503, 500, "html")
    ),
    "test_page_faults.py::test_a_question_after_a_failed_answer_is_answered[fault5]",
    "test_page_faults.py::test_a_server_that_comes_back_with_other_models_is_found[names1]",
    "::test_the_page_works_without_a_database_or_a_channel_between_tabs[delete window.BroadcastChannel]",
    "test_page.py::test_the_page_fits_phone_and_desktop_and_passes_axe[390-light]",
    "test_page.py::test_the_page_fits_phone_and_desktop_and_passes_axe[1200-dark]",
    "test_page.py::test_two_checkpoints_are_compared_on_the_page",
    *(  # each kind of model decodes at each temperature and in each number of rows; all pairs of them are at full size
        f"test_decode.py::test_decoding_equals_the_full_forward[{kind}-{temperature}-{rows}]"
        for kind in ("fledgling", "llama", "gpt2", "flash_norm", "windows", "tables", "stream", "gates")
        for temperature, rows in ((0.0, 5), (0.0, 64), (0.7, 1), (0.7, 64), (1.0, 1), (1.0, 5))
    ),
    *(
        f"test_decode.py::test_an_answer_does_not_depend_on_the_batch[{kind}-{rows}]"
        for kind in ("flash_norm", "tables", "stream", "gates")
        for rows in (1, 3)
    ),
    "test_two_hundred_requests.py::test_every_answer_is_that_of_the_full_forward[fledgling-all]",
    "test_two_hundred_requests.py::test_every_answer_is_that_of_the_full_forward[gpt2-all]",
    "test_algorithm.py::test_a_variant_reaches_the_optimum_of_the_bandit[dr_grpo]",
    "test_planner.py::test_memory_of_blocks_that_recompute_is_planned_too[0]",
    *(
        f"test_planner.py::test_memory_of_optional_features_is_planned_too[{name}]"
        for name in ("20-features1", "20-features9", "0-features7")
    ),
    *(
        f"test_planner.py::test_memory_is_within_three_percent_of_the_allocator_s[{case}]"
        for case in (
            "llama 4 x 512, 2 heads, V 512, 1 x 1 x 128, float32, whole, lora on int4",
            "llama 4 x 256, 2 heads, V 1,024, 1 x 4 x 256, float32, whole, lora on nf4",
            "fledgling 4 x 128, 2 heads, V 512, 1 x 8 x 256, float32, whole, live teacher",
            "fledgling 1 x 64, 2 heads, V 32,768, 1 x 2 x 128, float32, chunked, live teacher",
            "fledgling 4 x 128, 2 heads, V 512, 1 x 8 x 256, float32, whole, rounded",
            "fledgling 2 x 256, 2/1 heads, V 4,096, 1 x 4 x 512, float32, chunked",  # in bfloat16, chunked too
            "fledgling 4 x 256, 2 heads, V 4,096, 1 x 4 x 256, float32, whole, lora on none",  # llama has it too
            "fledgling 2 x 128, 2 heads, V 4,096, 1 x 4 x 256, float32, whole, live teacher",  # in bfloat16 too
        )
    ),
    *(
        f"test_verify.py::test_a_copy_whose_hashes_were_all_forged_is_caught_by_replayed_steps[tamper_{name}]"
        for name in ("moment", "token", "checkpoint")
    ),
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[ppo in passes]",
    "test_resume.py::test_stopping_and_resuming_equals_not_stopping[stale answers]",
    *(
        f"test_two_hundred_requests.py::test_every_answer_is_that_of_the_full_forward[gpt2-{mode}]"
        for mode in ("shared", "hardly cached", "drafts")
    ),
    "test_campaigns.py::test_a_disk_that_is_full_at_any_page_corrupts_nothing",
    "test_export.py::test_other_formats_print_their_comparison[words3-onnxruntime-0.0001]",
    "benchmarks/test_tokenizer.py::test_every_library_encodes_to_the_same_ids[2]",
    "test_comm.py::test_predicted_bytes_are_counted_bytes[4-3]",
    "test_dry_run.py::test_a_shipped_recipe_passes_the_dry_run_of_every_stage_at_its_full_size[d20-8xh100]",
    "test_health.py::test_the_streams_of_dpo_and_rl_skip_too[dpo-0]",
    "test_one_update.py::test_a_step_without_targets_or_not_finite_on_one_rank_changes_nothing_on_several_ranks[False]",
    "test_planner.py::test_memory_of_state_in_eight_bits_is_planned_too[15]",
    "test_verify.py::test_a_copy_whose_hashes_were_all_forged_is_caught_by_replayed_steps[tamper_metrics]",
    "test_bpb.py::test_two_ranks_measure_what_one_does",  # train/test_evals_on_ranks.py compares their lines
    "test_likelihood.py::test_two_ranks_share_the_work_and_both_get_all_scores",  # that one too
    *(
        f"test_device_step.py::test_a_step_on_cuda_is_queued_without_a_read_and_makes_no_mask[{case}]"
        for case in ("windows", "adamw", "normuon", "zero 1")
    ),
    *(
        f"test_device_step.py::test_a_step_on_an_apple_gpu_has_no_float64_and_waits_once[{case}]"
        for case in ("ppo", "dpo")
    ),
    "test_health.py::test_a_checkpoint_saved_between_bad_steps_is_gone_after_the_rollback[1]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of FULL_SIZE unless FLEDGLING_FULL is set, as `make test-all` does."""
    if os.environ.get("FLEDGLING_FULL"):
        return
    for item in items:
        if item.nodeid.endswith(FULL_SIZE):
            item.add_marker(pytest.mark.skip(reason="at full size: make test-all"))


def pytest_xdist_auto_num_workers() -> int:
    """Returns the workers of `-n auto`: one more than cores, since a worker often waits for other processes."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names bytes by their number: what is packed at the time of collection differs between two workers."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > 20 else None


def pytest_collection(session: pytest.Session) -> None:
    """Imports this worker's share of the test modules before the others, so that each is compiled by one worker.

    Pytest compiles a module together with the texts of its asserts, which takes 5 s for all of them; other workers load
    the result. A module whose import fails here is imported again, and reported, when it is collected.
    """
    gc.disable()  # until all is imported: nothing of it is garbage
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or sys.dont_write_bytecode:
        return
    folders = [Path(argument) for argument in session.config.args if "::" not in argument]
    modules = sorted({path for folder in folders for path in folder.rglob("test_*.py")})
    for path in modules[int(worker.removeprefix("gw")) :: workers]:
        name = ".".join(path.absolute().relative_to(session.config.rootpath).with_suffix("").parts)
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(name)


def pytest_collection_finish() -> None:
    """Takes all objects that exist now out of garbage collection: a pass over all modules and tests takes .3 s."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Cache and state are folders of this session: `plan` and `chat` find in them what a test put there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEDGLING_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def small_runs(tmp_path_factory):
    """Runs prepare less than a user's (tests/short_preparation.py)."""
    from tests.short_preparation import WORDS_FILE, shorten_preparation  # imports torch, as `pytest --version` does not

    folder = tmp_path_factory.getbasetemp()
    os.environ[WORDS_FILE] = str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "words.txt")
    shorten_preparation()


@pytest.fixture
def seeded():
    """The test draws the same numbers whichever tests ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def one_thread_known_peak(monkeypatch):
    """The test computes on one thread, and the machine's peak is not measured but 1 GFLOP/s."""
    from fledgling.runtime import device
    from tests.ranks import one_thread

    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    with one_thread():
        yield
