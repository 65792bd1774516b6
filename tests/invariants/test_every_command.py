"""Every command that README and docs show is run by a test, and every option of every command.

A shown command runs here as it is, or as a smaller one that differs in sizes and names alone, or it names the test that
runs it. The tests at the end compare the tables with the pages and with the commands' own options.
"""

import ast
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from fledgling.cli import main
from tests.command_tree import iterate_commands
from tests.fast_run import write_recipe
from tests.invariants.test_docs import ROOT, commands
from tests.made_up_core import write_core_bundle
from tests.made_up_sets import write_public_sets

AS_SHOWN = None
VERIFY = "tests/cli/test_verify.py::test_what_holds_is_a_table_with_its_notes"
RANKS = "tests/cli/test_ranks.py::test_ranks_are_started_and_their_exit_code_is_ours"
BUDGET = "tests/speedrun/test_budgeted.py::test_a_run_within_a_budget_forecasts_keeps_its_time_and_compares"
ELSEWHERE = {  # shown command: the test that runs it
    "fledgling verify runs/quickstart": VERIFY,
    "fledgling verify runs/quickstart --root 3f2a...": VERIFY,
    "fledgling verify runs/quickstart --steps 40 --seconds 300": VERIFY,
    "fledgling watch runs/quickstart": (
        "tests/cli/test_watch.py::test_the_page_is_served_until_a_signal_and_no_torch_is_imported"
    ),
    "fledgling serve runs/quickstart": "tests/cli/test_runs.py::test_the_cell_of_the_table_is_what_happens",
    "fledgling speedrun --minutes 15 --set run.out=runs/quarter": BUDGET,
    "fledgling speedrun --hours 8 --set model.depth=6 --set run.out=runs/long": BUDGET,
    "fledgling speedrun quickstart --gpus 2 --set run.out=runs/two": RANKS,
    "fledgling speedrun quickstart --gpus 2 --set sft.micro_batch_size=8": (RANKS),
    "fledgling speedrun quickstart --gpus 2 --restarts 3": (RANKS),
    "fledgling train pretrain d12-1gpu --gpus 8": RANKS,
    "fledgling train pretrain d20-8xh100 --gpus 8 --set 'tokenizer.sources=[\"fineweb-edu-100b\"]' "
    "--set 'pretrain.mixture={fineweb-edu-100b=1.0}'": RANKS,
    "fledgling train pretrain d20-8xh100 --gpus 8 --nodes 2 --rendezvous node0:29400": (
        "tests/runtime/test_launch_files.py::test_the_slurm_job_trains_on_two_nodes_and_is_queued_again_before_its_time_is_up"
    ),
    "fledgling bench gpu --out gpu-check --minutes 8": (
        "tests/bench/test_gpu.py::test_parts_run_in_small_and_one_that_fails_stops_none"
    ),
    "fledgling data fetch core": "tests/corpora/test_core_bundle.py::test_the_command_fetches_it_and_info_lists_it",
    "fledgling data fetch gsm8k": "tests/corpora/test_public_sets.py::test_a_set_is_fetched_and_pinned_once",
    "fledgling data fetch fineweb-edu-100b --shards 240": (
        "tests/corpora/test_public_sets.py::test_the_first_files_can_be_fetched_alone"
    ),
    "fledgling export hf runs/quickstart exported-int8 --quantize int8": (
        "tests/cli/test_export.py::test_other_formats_print_their_comparison"
    ),
    "fledgling export mlx runs/quickstart-gguf exported-mlx": (
        "tests/cli/test_export.py::test_other_formats_print_their_comparison"
    ),
    "fledgling export onnx runs/quickstart quickstart.onnx": (
        "tests/cli/test_export.py::test_other_formats_print_their_comparison"
    ),
    "fledgling export push exported me/quickstart --private": (
        "tests/export/test_push.py::test_one_commit_has_all_files_and_the_token_is_not_printed"
    ),
    "fledgling export gguf runs/quickstart-gguf quickstart.gguf --type q4_k_m --importance embedded": (
        "tests/cli/test_export.py::test_other_formats_print_their_comparison"
    ),
    "fledgling eval lm-eval runs/quickstart --tasks arc_easy --limit 100": (
        "tests/evals/test_harness.py::test_the_harness_runs_a_local_task"
    ),
    "fledgling bench learn base= small=+optimizer.state=8bit": (
        "tests/scaling/test_race.py::test_recipes_and_checkouts_learn_for_the_same_time_and_are_compared_with_other_programs"
    ),
    "fledgling bench learn base= value-embeddings smear --set model.preset=nanochat-2025 --seeds 3 --out runs/race": (
        "tests/scaling/test_race.py::test_recipes_and_checkouts_learn_for_the_same_time_and_are_compared_with_other_programs"
    ),
    "fledgling bench learn base= before=../before:quickstart theirs=results.jsonl --minutes 5.8 --text my_text.jsonl": (
        "tests/scaling/test_race.py::test_recipes_and_checkouts_learn_for_the_same_time_and_are_compared_with_other_programs"
    ),
    "fledgling scaling run --ablate gelu,swiglu,tied --seeds 3 --budgets 1e13": (
        "tests/scaling/test_ablation.py::test_an_ablation_runs_resumes_and_prints_its_effects"
    ),
    "fledgling scaling run --ablate all --set model.depth=2 --out runs/features": (
        "tests/scaling/test_ablation.py::test_every_variant_is_a_recipe_at_equal_flops"
    ),
    "fledgling scaling run --ablate model.window_pattern=SSL+model.window_size=32": (
        "tests/scaling/test_ablation.py::test_every_variant_is_a_recipe_at_equal_flops"
    ),
    "fledgling scaling run --depths 1,2,3,4 --budgets 1e13,2e13,4e13 --out runs/scaling": (
        "tests/scaling/test_sweep.py::test_a_sweep_trains_and_skips_finished_runs"
    ),
    "fledgling scaling check runs/scaling --times 4": (
        "tests/scaling/test_sweep.py::test_a_budget_beyond_the_sweep_is_predicted_and_then_trained"
    ),
    "fledgling scaling fit runs/scaling": (
        "tests/scaling/test_sweep.py::test_a_budget_beyond_the_sweep_is_predicted_and_then_trained"
    ),
    "fledgling scaling predict 1e15 --runs runs/scaling": (
        "tests/scaling/test_sweep.py::test_a_budget_beyond_the_sweep_is_predicted_and_then_trained"
    ),
}
LLAMA = "--set=model.family=llama --set=run.out=runs/llama"
WALKS: list[dict[str, str | None]] = [  # shown command (or a name): what runs here. One after the other.
    {
        "fledgling chat runs/quickstart": "fledgling chat runs/quickstart -p hello --max-new-tokens 3",
        "chat": "fledgling chat runs/quickstart --prompt 2+3? --python --min-p 0.1 --top-k 5 --top-p 0.9 --seed 3 "
        "--temperature 0.5 --system 'Be kind.' --max-new-tokens 3 --device cpu",
        "chat without tools": "fledgling chat runs/quickstart -p hello --no-python --max-new-tokens 3",
    },
    {
        "fledgling doctor": AS_SHOWN,
        "doctor": "fledgling doctor --json",
        "fledgling plan --depth 20 --gpus 8 --gpu h100": AS_SHOWN,
        "fledgling plan d20-8xh100 --link ethernet-100g": AS_SHOWN,
        "plan": "fledgling plan fast.toml --layout whole-logits --mfu 0.3 --price 2.5 --context 32 --vocab-size 330",
        "fledgling plan d12-1gpu": AS_SHOWN,
        "fledgling plan --minutes 15": AS_SHOWN,
        "plan hours": "fledgling plan fast.toml --hours 0.1 --json",
        "fledgling plan d20-8xh100 --usd 50 --gpu h100 --gpus 8": AS_SHOWN,
        "plan inference": "fledgling plan fast.toml --inference --length 16 --conversations 2 --json",
        "fledgling plan compare --depth 12": AS_SHOWN,
        "fledgling plan --depth 12 --peak 165 --bandwidth 1008 --memory 24 --price 0.40": AS_SHOWN,
        "fledgling plan devices --hours 24 --price h100=3 --price t4=0.35": (
            "fledgling plan devices --gpu h100 t4 --hours 24 --price h100=3 --price t4=0.35"
        ),
        "fledgling speedrun quickstart --dry-run": "fledgling speedrun fast.toml --dry-run",
        "plan compare": "fledgling plan compare --depth 1 2 --context 32 --vocab-size 330 --json",
        "fledgling config show quickstart": AS_SHOWN,
        "fledgling config show quickstart --set sft.steps=400 --set sft.mixture.spelling=0.3": AS_SHOWN,
        "fledgling config show quickstart --set model.family=llama --set model.kv_heads=1": AS_SHOWN,
        "fledgling config show quickstart --set model.activation=gelu --set model.tie_embeddings=true "
        "--set model.logit_softcap=0": AS_SHOWN,
        "fledgling config show d20-8xh100": AS_SHOWN,
        "config show": "fledgling config show d20-8xh100 --json",
        "config list": "fledgling config list",
        "fledgling scaling predict 5.76e23": AS_SHOWN,
        "scaling predict": "fledgling scaling predict 1e15 --bytes-per-token 4 --json",
        "fledgling scaling recover --seeds 100": "fledgling scaling recover --seeds 2 --noise 0.01 --json",
    },
    {
        "fledgling checkpoint verify runs/quickstart": AS_SHOWN,
        "fledgling checkpoint verify runs/quickstart/sft --json": AS_SHOWN,
        "report": "fledgling report runs/quickstart --out page.html --json",
        "fledgling export hf runs/quickstart out": "fledgling export hf runs/quickstart out --shard-gb 0.0001 --json",
        "fledgling export hf runs/quickstart exported": "fledgling export hf runs/quickstart exported --dtype float32",
        "fledgling import exported runs/again": AS_SHOWN,
        "import": "fledgling import exported runs/again-json --json",
        "fledgling train sft quickstart --set 'stages=[\"sft\"]' --set run.init_from=runs/quickstart/midtrain "
        "--set run.out=runs/lora --set adapter.method=lora --set adapter.rank=8": (
            "fledgling train sft fast.toml --set 'stages=[\"sft\"]' --set run.init_from=runs/quickstart/pretrain "
            "--set run.out=runs/lora --set adapter.method=lora --set adapter.rank=8"
        ),
        "fledgling export adapter runs/lora adapter": AS_SHOWN,
        "export adapter": "fledgling export adapter runs/lora named --base somewhere/model --json",
        "fledgling export hf runs/lora merged": AS_SHOWN,
        "fledgling export html runs/quickstart page.html": (
            "fledgling export html runs/quickstart page.html --bits 8 --group-size 32 --embedding --json"
        ),
        "fledgling export gguf runs/quickstart-gguf quickstart.gguf --type q8_0": (
            "fledgling export gguf runs/llama again.gguf --type q8_0 --fold-norms --json"
        ),
    },
    {
        "fledgling quantize runs/quickstart runs/int4 --bits 4": (
            "fledgling quantize runs/quickstart runs/int4 --bits 4 --questions 1 --text notes.txt --json --measure"
        ),
        "fledgling quantize runs/quickstart runs/quickstart-int4 --bits 4": (
            "fledgling quantize runs/quickstart runs/quickstart-int4 --bits 4 --no-measure --no-embedding --no-head"
        ),
        "fledgling chat runs/quickstart-int4": "fledgling chat runs/quickstart-int4 -p hello --max-new-tokens 3",
        "quantize": "fledgling quantize runs/quickstart runs/int8 --bits 8 --no-measure --head --embedding "
        "--group-size 32",
    },
    {
        "fledgling eval core runs/quickstart --max-per-task 60": (
            "fledgling eval core runs/quickstart --max-per-task 1 --log before.jsonl --device cpu "
            "--dtype float32 --out core"
        ),
        "fledgling eval core runs/d20-8xh100 --log core.jsonl": (
            "fledgling eval core runs/quickstart --max-per-task 1 --log core.jsonl --tasks choice --convention foundry "
            "--no-untrained"
        ),
        "fledgling eval core runs/quickstart --untrained": (
            "fledgling eval core runs/quickstart --untrained --max-per-task 1 --log after.jsonl"
        ),
        "fledgling eval core --replay core.jsonl": AS_SHOWN,
        "fledgling eval compare before.jsonl after.jsonl": AS_SHOWN,
        "eval compare": "fledgling eval compare before.jsonl after.jsonl --json",
    },
    {
        "fledgling eval bpb runs/quickstart notes.txt": AS_SHOWN,
        "eval chat": (
            "fledgling eval chat runs/quickstart --tasks chatcore --questions 1 --out chat --fresh --log log.jsonl"
        ),
        "fledgling eval chat runs/quickstart --wordings dev": (
            "fledgling eval chat runs/quickstart --tasks counting --questions 1 --wordings dev"
        ),
        "fledgling eval chat runs/d12-1gpu --tasks arc_easy,mmlu --questions 500": (
            "fledgling eval chat runs/quickstart --tasks arc_easy,mmlu --questions 1"
        ),
        "fledgling eval chat runs/d12-1gpu --tasks chatcore --questions 20000": (
            "fledgling eval chat runs/quickstart --tasks chatcore --questions 1 --json"
        ),
        "fledgling eval passk runs/d12-1gpu --task humaneval --samples 10 --k 1,5,10": (
            "fledgling eval passk runs/quickstart --task humaneval --samples 2 --k 1,2 --questions 1 --seed 4 "
            "--temperature 0.5 --device cpu --out passk"
        ),
        "fledgling eval needle runs/quickstart --context 1024 --rope yarn": (
            "fledgling eval needle runs/quickstart --context 128 --rope yarn --lengths 64 --questions 1 "
            "--text notes.txt --device cpu --json"
        ),
        "scaling inference": "fledgling scaling inference runs/quickstart --task counting --questions 2 --samples 4 "
        "--seed 3 --temperature 0.7 --hold-out 2 --device cpu --out coverage --data-dir data",
    },
    {
        "data info": "fledgling data info text --compress",
        "fledgling data overlap pretrain --tasks mmlu,gsm8k,arc_easy": (
            "fledgling data overlap text --tasks mmlu,gsm8k,arc_easy"
        ),
        "fledgling data overlap smoltalk gsm8k --tasks humaneval --items my_exam.jsonl --json": (
            "fledgling data overlap gsm8k --tasks humaneval --items my_exam.jsonl --words 4 --json"
        ),
        "fledgling data prepare d20-8xh100 --workers 32 --set 'tokenizer.sources=[\"fineweb-edu-100b\"]' "
        "--set 'pretrain.mixture={fineweb-edu-100b=1.0}'": (
            "fledgling data prepare fast.toml --workers 1 --set run.out=runs/prepared"
        ),
        "tokenizer train": "fledgling tokenizer train text --vocab-size 300 --no-letter-tokens --max-characters 4000 "
        "--max-digits 2 --trainer tokenizers --out trained --json",
        "tokenizer train letters": "fledgling tokenizer train text --vocab-size 320 --letter-tokens --out trained",
        "fledgling data inspect my.jsonl --run runs/quickstart --page data.html": (
            "fledgling data inspect pairs.jsonl --run runs/quickstart --page data.html --rows 5"
        ),
        "data inspect": "fledgling data inspect text --exams gsm8k --data-dir data --json",
        "tokenizer show": "fledgling tokenizer show trained 'a text' --json",
    },
    {
        "fledgling train pretrain quickstart --set run.max_rollbacks=3": (
            "fledgling train pretrain fast.toml --set run.max_rollbacks=3 --set run.out=runs/rollbacks"
        ),
        'fledgling train dpo quickstart --set \'stages=["pretrain", "midtrain", "sft", "dpo"]\' '
        "--set dpo.pairs=pairs.jsonl": (
            'fledgling train dpo fast.toml --set \'stages=["pretrain", "sft", "dpo"]\' --set dpo.pairs=pairs.jsonl'
        ),
        "fledgling train rl quickstart --set 'rl.rewards={task = 1.0, \"rewards.py:polite\" = 0.2}'": (
            "fledgling train rl fast.toml --set 'rl.rewards={task = 1.0, \"rewards.py:vowels\" = 0.2}' --resume never"
        ),
        "fledgling distill runs/quickstart arithmetic answers.jsonl --count 2000": (
            # an answer of such a model rarely ends, and a file without answers is an error
            "fledgling distill runs/quickstart arithmetic answers.jsonl --count 200 --temperature 5 --max-new-tokens 4 "
            "--seed 2 --data-dir data --device cpu --dtype float32 --json"
        ),
        "fledgling train sft quickstart --set distill.teacher=runs/teacher --set distill.top_k=32": (
            "fledgling train sft fast.toml --set distill.teacher=runs/quickstart/pretrain --set distill.top_k=32 "
            "--resume never"
        ),
        "fledgling train rl quickstart --set rl.algorithm=distill --set distill.teacher=runs/teacher "
        "--set rl.kl_weight=0 --set rl.advantage_normalization=none": (
            "fledgling train rl fast.toml --set rl.algorithm=distill --resume never "
            '--set distill.teacher=runs/quickstart/pretrain --set \'stages=["pretrain", "sft", "rl"]\''
        ),
        "fledgling train sft quickstart --set sft.quantization_aware=int4": (
            "fledgling train sft fast.toml --set sft.quantization_aware=int4 --resume never"
        ),
        "fledgling speedrun quickstart --watch": (
            "fledgling speedrun fast.toml --set run.out=runs/watched --watch --watch-port 0"
        ),
        "bench train": "fledgling bench train --batch 1 --context 16 --depth 1 --vocab-size 330 --steps 1 "
        "--set run.compile=off --set model.width=64 --json",
    },
]
REJECTED = {  # options that need what a test does not have: rejected in one line
    "fledgling watch runs/quickstart --host 0.0.0.0 --api-key short --port 0": "at least 8",
    "fledgling serve runs/quickstart --compare runs/quickstart/sft --host 0.0.0.0 --api-key short --model-name a "
    "--max-batch-size 2 --max-queue-size 3 --prefill-chunk 8 --prefix-cache-tokens 9 --num-speculative-tokens 2 "
    "--device cpu --python "
    "--adapter a=b --allow-host a.example --allow-origin https://a.example": "at least 8",
    "fledgling serve runs/quickstart --allow-host http://a.example": "without scheme and port",
    "fledgling serve runs/quickstart --allow-origin *": "expected SCHEME://HOST[:PORT]",
    "fledgling bench infer --peers --batch 0": "batch",
    "fledgling bench learn base= tied --minutes 0 --recipe fast.toml --points 2 --held-out-kb 9 --clock cpu "
    "--json": "minutes 0",
    "fledgling speedrun quickstart --usd 5 --gpu h100 --price 3": "`fledgling plan --usd` plans for a GPU that",
    "fledgling speedrun quickstart --minutes 5 --hours 2": "give one of them",
    "fledgling plan --usd 5": "--price",
    "fledgling bench gpu --no-tiny --out gpu --minutes 0": "minutes",
    "fledgling data fetch nowhere --shards 2": "nowhere",
    "fledgling scaling run --depths 1 --budgets 1e3 --recipe fast.toml": "budget",
    "fledgling scaling check nowhere --depth 1 --set run.threads=1": "nowhere",
    "fledgling eval lm-eval nowhere --tasks arc_easy --limit 1 --include folder --shots 0 --device cpu --dtype float32 "
    "--json": "",
}


pytestmark = pytest.mark.usefixtures("one_thread_known_peak")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the smallest recipe, its run as runs/quickstart, public sets and the files that pages mention."""
    folder = tmp_path_factory.mktemp("commands")
    recipe = write_recipe(folder)
    text = recipe.read_text(encoding="utf-8").replace('"midtrain", ', "")
    recipe.write_text(text.replace(f'out = "{folder / "run"}"', 'out = "runs/quickstart"'), encoding="utf-8")
    write_core_bundle(write_public_sets(folder / "data"))
    shutil.copyfile(folder / "text" / "00.txt", folder / "notes.txt")
    (folder / "my_exam.jsonl").write_text(
        json.dumps({"question": "the river and the mill", "answer": "a bridge"}) + "\n"
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        for words in ("pretrain fast.toml", "sft fast.toml", f"pretrain fast.toml {LLAMA}"):
            assert main(["train", *words.split()]) == 0
    finally:
        os.chdir(before)
    return folder


def run_line(line: str) -> int:
    verb, *words = shlex.split(line)
    assert verb == "fledgling"
    return main(words)


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: next(iter(walk)).removeprefix("fledgling "))
def test_a_shown_command_runs(walk, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FLEDGLING_DATA", str(folder / "data"))
    for shown, smaller in walk.items():
        assert run_line(smaller or shown) == 0, f"{smaller or shown}: {capfd.readouterr().err[-600:]}"
        assert "Traceback" not in capfd.readouterr().err, smaller or shown


@pytest.mark.parametrize("line", REJECTED, ids=lambda line: line[10:40])
def test_what_cannot_run_here_is_rejected_in_one_line(line, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FLEDGLING_DATA", str(folder / "data"))
    assert run_line(line) == 1
    error = capfd.readouterr().err
    assert REJECTED[line] in error and error.startswith("error: ") and error.count("\n") == 1


def normalize(line: str) -> str:
    """A shown command without its comment, with one space between words."""
    return shlex.join(shlex.split(line, comments=True))


def test_every_shown_command_is_run_by_a_test():
    known = {normalize(line) for line in (*ELSEWHERE, *(line for walk in WALKS for line in walk))}
    for line in sorted({normalize(command) for command in commands()} - known):
        verbs = [other for other in known if other.startswith(" ".join(line.split()[:3])) and "..." not in line]
        raise AssertionError(f"no test runs `{line}`: add it to WALKS or ELSEWHERE; near it: {verbs[:3]}")


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_a_test_that_runs_a_shown_command_exists(place):
    file, name = place.split("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def options_of_commands() -> dict[tuple[str, ...], set[str]]:
    """The options of every command, by its words."""
    found: dict[tuple[str, ...], set[str]] = {}
    for words, arguments in iterate_commands():
        names = {name for argument in arguments for name in argument.names if name.startswith("--")}
        found[words] = {name for name in names if not name.startswith("--empty-")}
    return found


def words_of_tests() -> list[set[str]]:
    """The words that each test, with its file's tables, gives to a command."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))

        def words(nodes) -> set[str]:
            texts = (c.value for n in nodes for c in ast.walk(n) if isinstance(c, ast.Constant))
            return {word.split("=")[0] for text in texts if isinstance(text, str) for word in text.split()}

        tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        shared = words(node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef))
        found += [words([test]) | shared for test in tests]
    return found


def test_every_option_is_given_by_a_test():
    options, given = options_of_commands(), words_of_tests()
    assert len(options) > 30 and sum(map(len, options.values())) > 150
    missing = {
        " ".join(verb): sorted(lacking)
        for verb, names in options.items()
        if (lacking := {n for n in names if not any({n, *verb} <= words for words in given)})
    }
    assert missing == {}
