"""Windows of a text that is longer than a model's rows, and one answer of those to its windows.

A window is a list of places in the encoding of the whole text: the tokens that open it (special
ones, and the first text of a pair), a slice of the others, and the special tokens that close it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import LengthError

#: Places in the tokens of a text: [W] int64, ascending.
Window = NDArray[np.int64]


def windows_of(encoding: Any, max_length: int, overlap: int, name: str = "a text") -> list[Window]:
    """The windows that read a text, from its beginning to its end; one that fits is one window.

    All have the same length. Neighbours share so many tokens of their slices as are wanted, but no
    more than half of them; the last two may share more.

    Args:
        encoding: of the whole text, nothing cut.
        max_length: most tokens of a window.
        overlap: tokens that neighbours share.
        name: what errors call the text.

    Raises:
        LengthError: what opens and closes a window leaves no room for a token between.
    """
    length = len(encoding.ids)
    if length <= max_length:
        return [np.arange(length)]
    owners = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids])
    (body,) = np.nonzero(owners == owners.max())
    opening, closing = np.arange(body[0]), np.arange(body[-1] + 1, length)
    room = max_length - len(opening) - len(closing)
    if room < 1:
        raise LengthError(
            f"{name} has {len(opening) + len(closing)} tokens beside the text that is read in "
            f"parts: the model takes at most {max_length}; shorten the first text of the pair"
        )
    step = room - min(overlap, room // 2)
    last = len(body) - room
    starts = [*range(0, last, step), last]
    return [np.concatenate([opening, body[start : start + room], closing]) for start in starts]


def merged(
    windows: Sequence[Window], outputs: Sequence[Mapping[str, NDArray[np.float32]]]
) -> dict[str, NDArray[np.float32]]:
    """The answers to the tokens of a text from those to its windows.

    A token takes the answer of the window in whose slice it stands farthest from both ends, of the
    first one where two are alike. What opens and closes all windows takes the smallest values that
    it has in any, so that a text has no answer only where no window has one.

    Args:
        windows: as ``windows_of`` made them.
        outputs: of each, per token: [W, ...] by name.

    Returns:
        [S, ...] by name.
    """
    if len(windows) == 1:
        return dict(outputs[0])
    places = np.stack(windows)  # [N, W]
    same = places[0] == places[1]
    opens, closes = int(np.argmin(same)), int(np.argmin(same[::-1]))
    body = slice(opens, len(same) - closes)
    steps = np.arange(len(same) - opens - closes)
    depth = np.minimum(steps, steps[::-1])
    deepest = np.full(1 + places.max(), -1)
    found = {
        name: np.full((len(deepest), *values.shape[1:]), np.inf, np.float32)
        for name, values in outputs[0].items()
    }
    for window, answers in zip(places, outputs, strict=True):
        inside = window[body]
        better = depth > deepest[inside]
        deepest[inside[better]] = depth[better]
        for name, values in answers.items():
            found[name][inside[better]] = values[body][better]
            for end in (slice(opens), slice(len(window) - closes, None)):
                found[name][window[end]] = np.minimum(found[name][window[end]], values[end])
    return found
