"""A wrapped stream changes batches and notes steps; its state is the stream's own."""

from fledgling.train.wrapped_stream import WrappedStream


class Numbers:
    """A stream of numbers, two a step."""

    def __init__(self):
        self.at, self.closed = 0, False

    def next(self):
        self.at += 2
        return [self.at - 2, self.at - 1]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def skip(self, steps):
        self.at += 2 * steps

    def close(self):
        self.closed = True


def test_batches_are_changed_steps_noted_and_the_state_is_the_streams():
    numbers, steps = Numbers(), []
    stream = WrappedStream(numbers, lambda number: -number, lambda: steps.append(numbers.at))
    assert stream.next() == [0, -1]
    state = stream.state_dict()
    stream.skip(2)
    assert stream.next() == [-6, -7] and steps == [0, 6]
    stream.load_state_dict(state)
    assert stream.next() == [-2, -3]
    stream.close()
    assert numbers.closed and WrappedStream(Numbers()).next() == [0, 1]
