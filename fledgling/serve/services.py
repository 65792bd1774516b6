"""The models of one server: loads checkpoints and adapters, each with a worker and a name of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.infer.adapters import make_engines
from fledgling.infer.chat_session import load_chat_engine
from fledgling.infer.engine import Engine
from fledgling.infer.tools import CALCULATOR, Tool
from fledgling.serve.examples import list_examples
from fledgling.serve.service import LOOPBACK, Service
from fledgling.serve.worker import CPU_PREFILL_CHUNK, GPU_PREFILL_CHUNK, Worker


@dataclass(frozen=True)
class WorkerSettings:
    """The arguments of every model's `Worker`; prefill_chunk None is the default of the engine's device."""

    max_batch_size: int = 32
    max_queue_size: int = 64
    prefill_chunk: int | None = None
    prefix_cache_tokens: int | None = None
    num_speculative_tokens: int = 0

    def make_worker(self, engine: Engine) -> Worker:
        """Starts a worker around an engine."""
        default = CPU_PREFILL_CHUNK if engine.device.type == "cpu" else GPU_PREFILL_CHUNK
        chunk = self.prefill_chunk or default
        return Worker(
            engine,
            self.max_batch_size,
            self.max_queue_size,
            chunk,
            self.prefix_cache_tokens,
            self.num_speculative_tokens,
        )


@dataclass(frozen=True)
class AccessOptions:
    """Who may use a server: the API key, further names in the Host header, and origins of other sites' pages.

    is_local: the server listens on loopback, and so rejects names in the Host header that are not its own.
    """

    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    is_local: bool = True

    def accepted_hosts(self) -> tuple[str, ...] | None:
        """Returns the accepted names in the Host header; None for any."""
        return (*LOOPBACK, *(name.lower() for name in self.hosts)) if self.is_local else None


def load_services(
    checkpoints: Sequence[Path],
    adapters: Mapping[str, Path],
    settings: WorkerSettings,
    access: AccessOptions,
    model_name: str | None = None,
    device: str = "auto",
    tool: Tool = CALCULATOR,
    notify: Callable[[str], None] = lambda text: None,
) -> list[Service]:
    """Loads the models of a server: the first checkpoint, its adapters, then the other checkpoints.

    Args:
        adapters: name -> directory of an adapter of the first checkpoint.
        model_name: of the first checkpoint; None: that of its run. The others are named after their run and stage.
        tool: what the models' own tool calls run.
        notify: is called with a line about each checkpoint of a run.
    """
    services: list[Service] = []
    for path in checkpoints:
        engine, state = load_chat_engine(path, device, tool, notify=notify)
        taken = [service.model_name for service in services]
        own_name = model_name if not services else None
        service = Service(
            worker=settings.make_worker(engine),
            tokenizer=engine.tokenizer,
            model_name=own_name or find_free_name(read_run_name(path, state), str(state.get("stage", "")), taken),
            created=int(time.time()),
            api_key=access.api_key,
            hosts=access.accepted_hosts(),
            origins=access.origins,
            examples=list_examples(str(state.get("recipe", "")), str(state.get("stage", ""))),
        )
        services.append(service)
        if len(services) == 1:
            require_other_name(service.model_name, adapters)
            for name, adapted in make_engines(engine, adapters).items():
                services.append(replace(service, worker=settings.make_worker(adapted), model_name=name))
    return services


def require_other_name(model_name: str, adapters: Mapping[str, Path]) -> None:
    """Raises UserError for an adapter that is named as the model whose weights it changes."""
    if model_name in adapters:
        raise UserError(
            f"--adapter {model_name}={adapters[model_name]}: {model_name} is the name of the model without an adapter: "
            "expected another one, or another name of the model by --model-name"
        )


def read_run_name(checkpoint: Path, state: Mapping[str, Any]) -> str:
    """Returns the run's name in the recipe of the checkpoint, otherwise the directory's name."""
    match = re.search(r'^name = "([^"]+)"', str(state.get("recipe", "")), re.MULTILINE)
    return match[1] if match else Path(checkpoint).resolve().name


def find_free_name(name: str, stage: str, taken: Sequence[str]) -> str:
    """Returns a model's name that no other has: that of the run, of run and stage, or with a number."""
    names = [name, f"{name}-{stage}"] if stage else [name]
    return next((one for one in names if one not in taken), f"{names[-1]}-{len(taken) + 1}")
