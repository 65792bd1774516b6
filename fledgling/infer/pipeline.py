"""Decoding with tokens that are read one step late: the host handles step k while the device computes step k + 1.

A step takes its input tokens from the step before on the device, so it can start before the host has seen them. What
the host learns late is handled exactly:

    a stop token, a cancelled request   the row has run one step too many; its token is discarded
    tokens forced by a tool             the row's next input is replaced by the forced token
    limits                              known beforehand: no step too many

The blocks of such a row may be given to another request at once: the device runs in order, so whatever is written to
them next comes later. `DecodePipeline.step` is called by the scheduler in place of its own decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fledgling.infer.device_decoder import (
    ACTIVE,
    COUNT,
    GIVEN,
    KEY,
    LENGTH,
    MIN_P,
    SOURCE,
    STATE_COLUMNS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    DeviceDecoder,
    PendingTokens,
    row_bucket,
)
from fledgling.infer.device_sampling import SamplingMode, can_sample_on_device, request_key, sampling_mode
from fledgling.infer.request import Request

MODES: tuple[SamplingMode, ...] = ("greedy", "plain", "truncated")


class DecodePipeline:
    """Runs the decoding steps of a scheduler's requests on a `DeviceDecoder`."""

    def __init__(self, decoder: DeviceDecoder) -> None:
        self.decoder = decoder
        self.rows: list[Request | None] = []  # of the last launched step; None for a request that was cancelled
        self.pending: PendingTokens | None = None  # of that step
        self._block_counts: list[int] = []  # of each row, as uploaded
        self._state = np.zeros((0, STATE_COLUMNS), np.int64)  # as uploaded
        self._tables = np.zeros((0, decoder.max_blocks), np.int32)

    def covers(self, request: Request) -> bool:
        """Whether the request can be decoded here: without drafts and constraint, and sampled on the device."""
        hosted = request.prompt_lookup is not None or request.constraint is not None
        return not hosted and can_sample_on_device(request.sampling)

    def discard(self, request: Request) -> None:
        """Forgets a request that was cancelled: its pending token is not read."""
        self.rows = [None if row is request else row for row in self.rows]

    def step(self, requests: Sequence[Request]) -> int:
        """Starts the next step of the requests, then appends the tokens of the step before.

        Returns:
            The number of rows of the step that was started.
        """
        places = {id(request): number for number, request in enumerate(self.rows) if request is not None}
        rows = [request for request in requests if len(request.tokens) + (id(request) in places) < request.token_limit]
        earlier, tokens = self.rows, self.pending
        self.pending = self._launch(rows, places) if rows else None
        self.rows = [*rows]
        _append_tokens(earlier, tokens)
        return len(rows)

    def _launch(self, rows: list[Request], places: dict[int, int]) -> PendingTokens:
        """Starts a step of the rows, whose lengths grow by the token that is fed.

        Args: places: of the requests (by id) in the last step.
        """
        decoder = self.decoder
        decoder.cache.reserve([request.row for request in rows], [1] * len(rows))
        counts = [len(request.row.block_table) for request in rows]
        if rows != self.rows or counts != self._block_counts or any(request.forced_tokens for request in rows):
            self._upload(rows, counts, places)
        for request in rows:
            request.row.length += 1
        mode = max((sampling_mode(request.sampling) for request in rows), key=MODES.index)
        return decoder.launch(row_bucket(len(rows)), max(counts), mode)

    def _upload(self, rows: list[Request], counts: list[int], places: dict[int, int]) -> None:
        """Uploads tables, lengths and sampling state of the rows, which have `counts` blocks each."""
        bucket = row_bucket(len(rows))
        state = np.zeros((bucket, STATE_COLUMNS), np.int64)
        tables = np.zeros((bucket, self.decoder.max_blocks), np.int32)
        state[:, SOURCE] = -1
        for number, (request, count) in enumerate(zip(rows, counts, strict=True)):
            place = places.get(id(request), -1)
            if place >= 0:
                state[number], tables[number] = self._state[place], self._tables[place]
            else:
                _set_sampling(state[number], request)
            if place < 0 or count != self._block_counts[place]:
                tables[number, :count] = [block.index for block in request.row.block_table]
            source, given = place, request.tokens[-1]
            if place >= 0 and request.forced_tokens:  # the pending token will be replaced by this one
                source, given = -1, request.forced_tokens[0]
            length, answered = request.row.length, len(request.tokens) + (place >= 0)
            state[number, [LENGTH, COUNT, SOURCE, GIVEN]] = length, answered, source, given
        self._state, self._tables, self._block_counts = state, tables, counts
        self.decoder.upload(state, tables)


def _set_sampling(row: np.ndarray, request: Request) -> None:
    """Fills the columns of a row of the state that do not change while its request is decoded."""
    sampling = request.sampling
    row[ACTIVE], row[KEY], row[TOP_K] = 1, request_key(sampling.seed, request.index), sampling.top_k
    fractions = np.array([sampling.temperature, sampling.top_p, sampling.min_p], np.float32)
    row[[TEMPERATURE, TOP_P, MIN_P]] = fractions.view(np.int32)


def _append_tokens(rows: Sequence[Request | None], pending: PendingTokens | None) -> None:
    """Appends a step's tokens to its requests; one that was cancelled gets none, and one that has ended ignores it."""
    if pending is None:
        return
    for request, token, logprob in zip(rows, *pending.read(), strict=False):  # the bucket may have further rows
        if request is not None:
            request.append_token(token, logprob)
