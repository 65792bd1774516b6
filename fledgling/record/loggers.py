"""Optional dashboards that receive the metrics in addition to the files; imported only when chosen by name."""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fledgling.config import UserError, did_you_mean


@dataclass(frozen=True)
class MetricLogger:
    """An open dashboard: write(values, step) and close()."""

    write: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def _open_tensorboard(stage_dir: Path, stage: str) -> MetricLogger:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(stage_dir / "tensorboard")

    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return MetricLogger(write, writer.close)


def _open_wandb_like(package: str, stage_dir: Path, stage: str) -> MetricLogger:
    """Opens wandb or trackio, which share one interface; their prints go to stderr, since stdout is for results."""
    module = importlib.import_module(package)

    def finish() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            run.finish()

    with contextlib.redirect_stdout(sys.stderr):
        run = module.init(project="fledgling", name=f"{stage_dir.absolute().parent.name}-{stage}")
    return MetricLogger(lambda values, step: run.log(values, step=step), finish)


LOGGERS: dict[str, Callable[[Path, str], MetricLogger]] = {
    "tensorboard": _open_tensorboard,
    "wandb": functools.partial(_open_wandb_like, "wandb"),
    "trackio": functools.partial(_open_wandb_like, "trackio"),
}


def require_loggers(names: Iterable[str]) -> None:
    """Raises UserError for a logger that is unknown or whose package is not installed, without opening any."""
    for name in names:
        _require_known(name)
        if importlib.util.find_spec(name) is None:  # each is called as its package
            raise UserError(_explain_missing(name))


def _require_known(name: str) -> None:
    if name not in LOGGERS:
        raise UserError(f'unknown logger "{name}": expected one of {", ".join(LOGGERS)}{did_you_mean(name, LOGGERS)}')


def _explain_missing(name: str) -> str:
    return f'the logger "{name}" needs a package that is missing: pip install {name}'


def open_logger(name: str, stage_dir: Path, stage: str) -> MetricLogger:
    """Opens the logger `name`. Raises UserError when there is none or its package is not installed."""
    _require_known(name)
    try:
        return LOGGERS[name](stage_dir, stage)
    except ImportError:
        raise UserError(_explain_missing(name)) from None
