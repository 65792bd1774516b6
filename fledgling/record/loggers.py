"""Optional dashboards that receive the metrics besides the files: chosen by name, imported only then."""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fledgling.config import UserError, did_you_mean


@dataclass(frozen=True)
class MetricLogger:
    """Where metrics go besides the files: write(values, step) and close()."""

    write: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def _tensorboard(stage_dir: Path, stage: str) -> MetricLogger:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(stage_dir / "tensorboard")

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return MetricLogger(write, writer.close)


def _wandb_like(package: str, stage_dir: Path, stage: str) -> MetricLogger:
    """wandb and trackio share one interface; what they print goes to stderr, since stdout is for results."""
    module = importlib.import_module(package)

    def finish() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            run.finish()

    with contextlib.redirect_stdout(sys.stderr):
        run = module.init(project="fledgling", name=f"{stage_dir.absolute().parent.name}-{stage}")
    return MetricLogger(lambda values, step: run.log(values, step=step), finish)


LOGGERS: dict[str, Callable[[Path, str], MetricLogger]] = {
    "tensorboard": _tensorboard,
    "wandb": functools.partial(_wandb_like, "wandb"),
    "trackio": functools.partial(_wandb_like, "trackio"),
}


def open_logger(name: str, stage_dir: Path, stage: str) -> MetricLogger:
    """The sink called `name`. Raises UserError when there is none or its package is not installed."""
    if name not in LOGGERS:
        raise UserError(f'unknown sink "{name}": expected one of {", ".join(LOGGERS)}{did_you_mean(name, LOGGERS)}')
    try:
        return LOGGERS[name](stage_dir, stage)
    except ImportError:
        raise UserError(f'the sink "{name}" needs a package that is missing: pip install {name}') from None
