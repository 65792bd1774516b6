"""A stop of training without a signal: replaces `runtime.signals.catch_stop_signals` in `train.run`."""


class StopRequest:
    """Requests a stop after `steps` steps: at the loop's check number `steps`. Called and entered as the original."""

    def __init__(self, steps: int) -> None:
        self.steps, self.checks = steps, 0

    def __call__(self):
        return self

    def __enter__(self):
        return self.should_stop

    def __exit__(self, *_):
        return False

    def should_stop(self) -> bool:
        self.checks += 1
        return self.checks >= self.steps
