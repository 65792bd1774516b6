"""The files in launch/: the SLURM script trains on two simulated nodes, the others are consistent."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime.exit_codes import FAILED, STOPPED, USAGE_ERROR
from tests.all_stages import make_all_stages_recipe

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

# srun starts one task a node and returns the highest exit code; scontrol lists two nodes and logs requeues.
FAKE_COMMANDS = {
    "srun": """#!/bin/bash
echo "srun $1" >> "$LOG"; shift
pids=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do wait "$pid" || { found=$?; ((found > code)) && code=$found; }; done
exit "$code"
""",
    "scontrol": """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then printf '127.0.0.1\\nlocalhost\\n'; else echo "scontrol $*" >> "$LOG"; fi
""",
    "fledgling": f"""#!/bin/bash
exec {sys.executable} -m fledgling "$@"
""",
}


def find_processes(mark: str) -> list[int]:
    """Returns the agents and ranks of the job, by their environment, without the shells."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                mark.encode() in (entry / "environ").read_bytes()
                and b"fledgling" in words
                and words[0].endswith(b"python")
            ):
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_slurm_job_trains_on_two_nodes_and_is_queued_again_before_its_time_is_up(tmp_path):
    make_all_stages_recipe(tmp_path)
    recipe = tmp_path / "all_stages.toml"
    text = recipe.read_text(encoding="utf-8")
    text = text.replace("seed = 3\n", 'seed = 3\nstages = ["pretrain"]\n', 1).replace("steps = 4", "steps = 40", 1)
    recipe.write_text(text, encoding="utf-8")
    for name, content in FAKE_COMMANDS.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    run, log = tmp_path / "out", tmp_path / "log"
    variables = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RECIPE": str(recipe),
        "RUN": str(run),
        "GPUS_PER_NODE": "1",
        "LOG": str(log),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    job = ["bash", str(LAUNCH / "slurm.sbatch")]
    first = subprocess.Popen(
        job, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while len(read_jsonl(run / "pretrain" / "metrics.jsonl")) < 3:
            assert time.monotonic() < deadline and first.poll() is None, first.communicate(timeout=60)[0][-3000:]
            time.sleep(0.05)
        pids = find_processes(f"RUN={run}")
        assert len(pids) == 4  # two agents, two ranks
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        output = first.communicate(timeout=60)[0]
    finally:
        first.kill()
    assert first.returncode == STOPPED, output[-3000:]
    assert "start 1: 2 nodes, rendezvous at 127.0.0.1:" in output and "the same command resumes from there" in output
    assert log.read_text().splitlines() == ["srun --kill-on-bad-exit=0", f"scontrol requeue {os.getpid()}"]
    saved = checkpoint.find_latest_checkpoint(run / "pretrain" / "checkpoints")
    assert 3 <= int(saved.name[5:]) < 40

    second = subprocess.run(
        job, env=os.environ | variables | {"SLURM_RESTART_COUNT": "1"}, capture_output=True, text=True, timeout=120
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert "start 2" in second.stdout and f"resuming after step {int(saved.name[5:])} of 40" in second.stderr
    assert len(log.read_text().splitlines()) == 3
    assert [line["step"] for line in read_jsonl(run / "pretrain" / "metrics.jsonl")] == list(range(1, 41))


def test_the_slurm_script_is_valid():
    script = LAUNCH / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=bash", script], check=True)
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, flags=re.MULTILINE))
    assert "requeue" in options and options["open-mode"] == "append" and options["ntasks-per-node"] == "1"
    assert re.fullmatch(r"USR1@\d+", options["signal"]) and f"saved={STOPPED} " in text
    commands = text.index("\nset -euo pipefail")
    assert text.rindex("#SBATCH") < commands  # SLURM reads no option after the first command


def load_kubernetes_objects() -> dict[str, dict]:
    documents = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_the_kubernetes_job_is_consistent():
    kinds = load_kubernetes_objects()
    job, service = kinds["Job"]["spec"], kinds["Service"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(word.removeprefix("--").split("=", 1) for word in container["args"] if word.startswith("--"))
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == int(options["nodes"])
    assert int(options["gpus"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    name, subdomain = kinds["Job"]["metadata"]["name"], pod["subdomain"]
    port = service["spec"]["ports"][0]["port"]
    assert options["rendezvous"] == f"{name}-0.{subdomain}:{port}" and service["metadata"]["name"] == subdomain
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    rules = {rule["action"]: rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"][:2]}
    assert rules == {"FailJob": [FAILED, USAGE_ERROR], "Ignore": [STOPPED]} and pod["restartPolicy"] == "Never"
    claims = {one["name"]: one.get("persistentVolumeClaim", {}).get("claimName") for one in pod["volumes"]}
    mounts = {one["mountPath"]: claims[one["name"]] for one in container["volumeMounts"]}
    assert mounts["/runs"] == kinds["PersistentVolumeClaim"]["metadata"]["name"] and "/dev/shm" in mounts


def test_every_kubernetes_field_is_in_the_schema():
    validate = pytest.importorskip("kubernetes_validate")
    for one in load_kubernetes_objects().values():
        validate.validate(one, "1.31", strict=True)
    wrong = load_kubernetes_objects()["Job"]
    wrong["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, "1.31", strict=True)


def test_the_skypilot_task_is_consistent():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    used = set(re.findall(r"\$\{?([A-Z_]+)", task["run"]))
    provided = {"SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE"}
    assert used <= provided | task["envs"].keys() and "/runs" in task["file_mounts"]
    assert "run.out=/runs/$RECIPE" in task["run"]


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes.yaml", "skypilot.yaml", "Dockerfile"])
def test_every_option_they_use_exists(name, capsys):
    from fledgling.cli import main
    from fledgling.config import load_recipe

    text = (LAUNCH / name).read_text()
    used = set(re.findall(r"--(gpus|nodes|rendezvous|set|restarts|resume)\b", text))
    assert main(["speedrun", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(f"--{option}" in help_text for option in used)
    for recipe in {"d20-8xh100", "quickstart"} & set(re.findall(r"[\w-]+", text)):
        load_recipe(recipe)


def parse_dockerfile(text: str) -> list[tuple[str, str]]:
    """Returns a Dockerfile's instructions in order; continued lines are joined."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_copies_existing_files_and_runs_without_privileges():
    steps = parse_dockerfile((LAUNCH / "Dockerfile").read_text())
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} <= known and steps[0][0] == "FROM" and not steps[0][1].endswith("latest")
    for name, rest in steps:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
        if name == "RUN":
            subprocess.run(["bash", "-n"], input=rest, text=True, check=True)
    names = [name for name, _ in steps]
    assert dict(steps)["USER"] == "fledgling" and names.index("USER") < names.index("ENTRYPOINT")
    assert dict(steps)["ENTRYPOINT"] == '["fledgling"]' and dict(steps)["STOPSIGNAL"] == "SIGTERM"
    minimum = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    image = re.search(r"python:([\d.]+)", steps[0][1])[1]
    assert tuple(map(int, image.split("."))) >= tuple(map(int, minimum.split(".")))
