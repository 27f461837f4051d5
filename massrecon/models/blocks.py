"""Cutting many draws of many events into blocks, so that the memory stays bounded.

All families work alike: a block holds at most `batch_size` values, whole events with all their
draws where these fit, else some of the draws of one event. The context of the events of a block is
computed once, with their first draws. What comes out does not depend on how it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor


def blocks(n_draws: int, n_events: int, batch_size: int) -> Iterator[tuple[slice, slice]]:
    """Cuts draws and events into blocks of at most `batch_size`: which draws of which events."""
    events_at_once = max(1, batch_size // max(n_draws, 1))
    for first in range(0, n_events, events_at_once):
        events = slice(first, min(first + events_at_once, n_events))
        for start in range(0, n_draws, batch_size):
            yield slice(start, min(start + batch_size, n_draws)), events


def blocks_with_context(
    n_draws: int, n_events: int, batch_size: int, context_of: Callable[[slice], Tensor]
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Cuts like `blocks`, with the context of the events of each block.

    Args:
        n_draws: Number of draws of each event.
        n_events: Number of events.
        batch_size: Most draws in a block.
        context_of: Computes the context of some events; called once for each event.
    """
    context = None
    for draws, events in blocks(n_draws, n_events, batch_size):
        if draws.start == 0:
            context = context_of(events)
        assert context is not None
        yield draws, events, context
