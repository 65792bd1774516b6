"""Training steps of every stage on an accelerator that is not there; prints what each did as JSON lines.

python -m tests.fake_accelerator_steps GUARD.so cuda mps
"""

import ctypes
import json
import os
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from functools import partial

ROWS, TIME, VOCAB, ENTRIES = 2, 2048, 65536, 512
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}
VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "split", "split_with_sizes", "unsqueeze"),
    *(
        "squeeze",
        "unbind",
        "detach",
        "alias",
        "permute",
        "as_strided",
        "view_as",
        "_reshape_alias",
        "chunk",
        "diagonal",
    ),
    *("device", "empty", "empty_like", "empty_strided", "new_empty", "unsafe_split", "lift_fresh", "set_", "resize_"),
}
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "attention"}
REDUCTIONS = {"sum", "mean", "amax", "logsumexp", "linalg_vector_norm", "aminmax"}


def load_watch():
    """Returns the class that watches a step; defined late, because the guard is loaded before torch."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        """Counts operations and bytes, and notes what a step on an accelerator must not do."""

        def __init__(self, kind):
            super().__init__()
            self.kind, self.device, self.reads, self.faults = kind, torch.device(kind), [], []
            self.operations, self.bytes = Counter(), Counter()  # by region
            self.region, self.fused = "outside", None

        @contextmanager
        def inside(self, region, fused=None):
            """Attributes what follows to a region. fused: the group of operations that becomes few kernels."""
            before, self.region, self.fused = (self.region, self.fused), region, fused
            try:
                yield
            finally:
                self.region, self.fused = before

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.__name__.split(".")[0]
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            on_device = any(t.device.type == self.kind for t in given)
            copied = name == "_to_copy" and (kwargs or {}).get("device") == torch.device("cpu") != self.device
            chosen = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
            if (name in READS or copied or chosen) and on_device:
                self.reads.append(sum(self.operations.values()))
                if chosen:
                    self.faults.append("a selection by a mask waits for the device")
                with unset_fake_temporarily():
                    return torch.ones(given[0].shape) if copied else 1.0  # what the host reads is finite
            if name == "_local_scalar_dense":
                return 1.0  # a learning rate, which the host has
            result = function(*args, **(kwargs or {}))
            made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            if name not in VIEWS and (on_device or any(t.device.type == self.kind for t in made)):
                self.count(name, given, made)
            for tensor in made:
                if tensor.dtype == torch.float64 and tensor.device.type == self.kind:
                    self.faults.append(f"{name} makes float64")
                if list(tensor.shape).count(TIME) > 1:
                    self.faults.append(f"{name} makes {tuple(tensor.shape)}")
                if tensor.device.type == "cpu" and tensor.numel() > 1:
                    self.faults.append(f"{name} makes {tuple(tensor.shape)} on the CPU")
            return result

        def count(self, name, given, made):
            """Counts an operation; of a compiled region products, and groups of what is between them."""
            kind = "product" if name in PRODUCTS else "other"
            self.bytes[self.region] += sum(t.nbytes for t in {id(t): t for t in (*given, *made)}.values())
            if self.fused is None or kind == "product":
                self.operations[self.region, kind] += 1
                if self.fused is not None:
                    self.fused.clear()  # what follows a product is another kernel
            elif name in REDUCTIONS or not self.fused:  # a reduction ends a kernel, the rest joins one
                self.operations[self.region, kind] += 1
                self.fused.add(name)

    return Watch


def build_case(kind, device, **options):
    """Returns (stage, model, optimizer, batches, world) of a small model; options as in CASES."""
    import torch

    from fledgling.config import DPOConfig, ModelConfig, OptimizerConfig, RLConfig
    from fledgling.data.batch import Batch
    from fledgling.data.multi_token_prediction import MultiTokenTargets
    from fledgling.model.transformer import Transformer
    from fledgling.optim.optimizer import Optimizer
    from fledgling.optim.schedule import trapezoidal_schedule
    from fledgling.runtime.world import World
    from fledgling.train import loss as losses
    from fledgling.train.critic import attach_critic, get_critic
    from fledgling.train.preference_loss import preference_batch_loss
    from fledgling.train.stage import Stage

    stage_name, dtype = options.pop("stage", "pretrain"), options.pop("dtype", "bfloat16")
    ranks, zero, rule = options.pop("ranks", 1), options.pop("zero_stage", 1), options.pop("rule", "muon")
    state = options.pop("state", "float32")
    rows, micro_batches = options.pop("rows", ROWS), options.pop("micro_batches", 2)
    recompute, multi_token = options.pop("recompute", False), MultiTokenTargets(options.pop("mtp_targets", 0))
    tied, answers = options.pop("tied_updates", 0), options.pop("answers", False)
    sizes = {"vocab_size": ENTRIES, "depth": 2, "width": 64, "heads": 2, "kv_heads": 2, "context": TIME}
    config = ModelConfig(**{"family": "fledgling", **sizes, **options})
    world = World(0, ranks, 0, device, ranks)
    with device:
        model = Transformer(config, getattr(torch, dtype))
        model.use_block_masks, model.recompute = kind == "cuda", recompute
        if stage_name == "ppo":
            attach_critic(model)
        optimizer = Optimizer(
            model,
            OptimizerConfig(
                zero_stage=zero, matrix_optimizer=rule, deterministic="off", state=state, tied_updates=tied
            ),
            world,
            dtype=getattr(torch, dtype),
        )
        tokens, numbers = (torch.zeros(rows, TIME, dtype=kind) for kind in (torch.int64, torch.int32))
        fields = {}
        if stage_name in ("rl", "ppo", "dpo"):
            names = ("loss_weights", "advantages", "old_logprobs", "reference_logprobs", "returns", "old_values")
            fields = {name: torch.zeros(rows, TIME) for name in names}
        if answers:  # every other position has a target
            fields["head_positions"] = torch.arange(0, rows * TIME, 2)
        batch = multi_token.add(Batch(tokens, tokens.clone(), numbers, **fields), 0)
    metrics = losses.StepMetrics()
    settings = RLConfig(kl_weight=0.1, entropy_weight=0.01)
    loss = {
        "pretrain": losses.next_token_loss,
        "rl": lambda model, batch: losses.policy_gradient_loss(model, batch, settings, 0.1, metrics),
        "ppo": lambda model, batch: losses.policy_gradient_loss(
            model, batch, settings, 0.1, metrics, get_critic(model)
        ),
        "dpo": lambda model, batch: preference_batch_loss(model, batch, DPOConfig(), metrics=metrics),
    }[stage_name]
    stage = Stage(stage_name, 1, None, loss, partial(trapezoidal_schedule, total_steps=1))
    return stage, model, optimizer, [batch] * micro_batches, world


@contextmanager
def replaced(target, name, value):
    """Sets an attribute or an entry within the context."""
    entry = isinstance(target, dict)
    before = target.get(name) if entry else getattr(target, name)
    put = target.__setitem__ if entry else partial(setattr, target)
    put(name, value)
    try:
        yield
    finally:
        put(name, before)


def run_case(watch, kind, device, saved=None, **options):
    """Runs one step under `watch`; compiled regions are those that `build_model` and the optimizer compile on CUDA."""
    import torch

    from fledgling.data.batch import Batch
    from fledgling.model import attention, logprob
    from fledgling.optim.sharded import gather_parameters, load_parameters
    from fledgling.runtime.world import World
    from fledgling.train import loop

    ranks = options.get("ranks", 1)
    stage, model, optimizer, batches, world = build_case(kind, device, **options)
    if saved:
        load_parameters(model, saved["model"], world)
        optimizer.load_full_state_dict(saved["optimizer"])

    def attend(q, k, v, mask=None, causal=False):
        """Represents a fused kernel: one operation that reads q, k and v and writes a result of q's shape."""
        with watch.inside("attention"):
            return q + (k.sum() + v.sum())

    def watched(function, region):
        def run(*args, **kwargs):
            with watch.inside(region, set()):
                return function(*args, **kwargs)

        return run

    if kind == "cuda":
        optimizer.compiled = True  # whole tensors, as `build_model` and `Optimizer` compile them
        for block in model.blocks:
            block.forward = watched(block.forward, "blocks")
            block.register_full_backward_pre_hook(lambda *_: vars(watch).update(region="blocks", fused=set()))
            block.register_full_backward_hook(lambda *_: vars(watch).update(region="outside", fused=None))
        optimizer._adamw = watched(optimizer._adamw, "update")
        optimizer._muon_direction = watched(optimizer._muon_direction, "update")
    kernel = logprob.softcap_exp if kind == "cuda" else logprob.softcap_exp_inplace

    def softcap_exp(z, cap):
        """The pass over a chunk that is compiled: reads the logits and writes as many values."""
        with watch.inside("head pass", set()):
            sums, g = kernel(z, cap)
        watch.bytes["head"] += z.nbytes + g.nbytes
        return sums, g

    forward = logprob._CrossEntropySum.forward
    with (
        replaced(attention, "flex_sdpa", attend),
        replaced(attention, "fused_attention", attend),
        replaced(attention, "windowed_sdpa", lambda q, k, v, mask, size: attend(q, k, v)),
        replaced(logprob._CrossEntropySum, "forward", staticmethod(watched_plainly(watch, forward, "head"))),
        replaced(model, "logprob_kernels", logprob.LogprobKernels(softcap_exp=softcap_exp)),
        replaced(Batch, "target_count", ROWS * TIME),  # counted on the host, before a batch goes to the device
        replaced(loop, "PendingRead", LateRead),
        replaced(World, "all_gather_object", lambda self, value: [value] * self.size),
        fake_group(ranks),
        watch,
    ):
        read = loop.queue_step(stage, model, optimizer, batches, world)
        read_in_step = len(watch.reads)
        read()
    assert all(p.device.type == kind and p.dtype == torch.float32 for p in model.parameters())
    steps = {"operations": {"/".join(key): count for key, count in watch.operations.items()}, "bytes": watch.bytes}
    reads = (min(watch.reads), max(watch.reads)) if watch.reads else (0, 0)
    state = {"model": gather_parameters(model, world), "optimizer": optimizer.full_state_dict()} if ranks == 1 else {}
    return {
        "faults": sorted(set(watch.faults)),
        "reads": len(watch.reads),
        "reads_in_step": read_in_step,
        "operations_between_reads": reads[1] - reads[0],
        **steps,
    }, state


class LateRead:
    """Represents a copy to pinned memory that nothing waits for; what counts as the read is `read`."""

    def __init__(self, values):
        self.values = values

    def read(self):
        return self.values.to("cpu", copy=True)


def watched_plainly(watch, function, region):
    """Returns a function whose operations are counted one by one, as those of a region."""

    def run(*args):
        with watch.inside(region):
            return function(*args)

    return run


@contextmanager
def fake_group(ranks):
    """A process group of `ranks` whose collectives do nothing."""
    import torch.distributed as dist

    if ranks == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


WINDOWS = {"window_pattern": "SL", "window_size": 256}
FEATURES = {"value_embeddings": 2, "residual_scalars": True}
CASES = {
    "pretrain": {},
    "windows": WINDOWS,
    "features": {**WINDOWS, **FEATURES},
    "llama": {"family": "llama", "norm": "rms_weighted", "activation": "swiglu"},
    "answers": {"answers": True},
    "rl": {"stage": "rl"},
    "rl answers": {"stage": "rl", "answers": True},
    "ppo": {"stage": "ppo"},
    "dpo": {"stage": "dpo"},
    "float16": {"dtype": "float16"},
    "adamw": {"rule": "adamw"},
    "normuon": {"rule": "normuon"},
    "recompute": {"recompute": True},
    "state in 8 bits": {"state": "8bit"},
    "zero 1": {"ranks": 2},
    "first steps": {"logit_shift": 2.0, "tied_updates": 2, "mtp_targets": 2},
    "zero 2": {"ranks": 2, "zero_stage": 2},
}
D20 = {"vocab_size": VOCAB, "depth": 20, "width": 1280, "heads": 10, "kv_heads": 10, "rows": 32, "micro_batches": 1}
ON_MPS = (
    "pretrain",
    "features",
    "rl",
    "ppo",
    "dpo",
    "float16",
)  # the rest differs in no operation that depends on the device

ONLY_AT_FULL_SIZE = (  # (device type, case): what is on it is in another case too
    *(("cuda", name) for name in ("windows", "adamw", "normuon", "zero 1")),
    *(("mps", name) for name in ("ppo", "dpo")),
)


def main(library, *kinds):
    """Runs every case on every device type, and d20 on CUDA."""
    guard = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # before torch, whose functions it replaces
    from tests.fake_accelerator import fake_accelerator

    Watch = load_watch()
    at_full_size = () if os.environ.get("FLEDGLING_FULL") else ONLY_AT_FULL_SIZE
    for kind in kinds:
        cases = {name: case for name, case in CASES.items() if kind == "cuda" or name in ON_MPS}
        cases = {name: case for name, case in cases.items() if (kind, name) not in at_full_size}
        for name, case in (cases | ({"d20": D20} if kind == "cuda" else {})).items():
            with fake_accelerator(guard, kind) as device:
                try:
                    found, _ = run_case(Watch(kind), kind, device, **case)
                except Exception:  # the test says which case it was
                    found = {"error": traceback.format_exc()[-2000:]}
            print(json.dumps({"kind": kind, "case": name, **found}), flush=True)
        with fake_accelerator(guard, kind) as device:
            print(json.dumps({"kind": kind, "case": "moved", "states": move_run(Watch, kind, device)}), flush=True)


def move_run(watch, kind, device):
    """Returns the state after a step on the CPU, one on the device that continues with it, and one on the CPU again."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    states, saved = [], None
    for place in (torch.device("cpu"), device, torch.device("cpu")):
        _, saved = run_case(watch(place.type), place.type, place, saved, dtype="float16")
        tensors = {f"{group} {name}": tensor for group, part in saved.items() for name, tensor in part.items()}
        states.append({name: [list(t.shape), str(t.dtype), t.device.type] for name, t in tensors.items()})
        with unset_fake_temporarily():  # the two numbers that the host reads
            saved["optimizer"]["loss_scale"] = torch.tensor([1024.0, 1.0])
    return states


if __name__ == "__main__":
    main(*sys.argv[1:])
