"""What heads compute: outputs, whole and row by row. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import OutputError

#: Output name -> values of one row: [...] float32, or [S, ...] where it is per token, of all tokens
#: in the order of the text.
Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Output:
    """An output of the head.

    Attributes:
        name: of the graph's tensor.
        per: what it is of. ``row`` [B, ...], of what survives of it; ``token`` [B, S, ...], of each
            of its tokens; ``mean`` and ``max`` [B, X], over values of all of its tokens. Tokens
            that are dropped take part in the last three, by what they were when they left.
            ``asked`` [B, A, ...], of those of its tokens alone that are ``token``, in their order,
            which the task protects.
        token: id of the tokens that are asked for.
    """

    name: str
    per: Literal["row", "token", "mean", "max", "asked"]
    token: int | None = None

    @property
    def of_all_tokens(self) -> bool:
        """Whether dropped tokens take part."""
        return self.per in ("token", "mean", "max")


def asked_token(outputs: Sequence[Output]) -> int | None:
    """The token that all of some outputs are of; None where they are of something else."""
    tokens = {output.token for output in outputs}
    return tokens.pop() if len(tokens) == 1 else None


def asked_counts(outputs: Sequence[Output], rows: Iterable[NDArray[np.int64]]) -> list[int]:
    """How many tokens of each row some outputs are of, where they are of some alone.

    Args:
        rows: ids [S] of each.
    """
    token = asked_token(outputs)
    return [] if token is None else [int((ids == token).sum()) for ids in rows]


def hear_dropped(outputs: Sequence[Output]) -> bool:
    """Whether dropped tokens take part in any of some outputs."""
    return any(output.of_all_tokens for output in outputs)


def rows_of_outputs(
    outputs: Sequence[Output],
    values: Mapping[str, NDArray[np.float32]],
    lengths: Sequence[int],
    asked: Sequence[int] = (),
) -> list[dict[str, NDArray[np.float32]]]:
    """The outputs of a batch row by row, without what lies behind a row's tokens.

    Args:
        outputs: what they are of.
        values: [B, ...] each.
        lengths: tokens of each row: [B].
        asked: those of them that are asked for: [B], where outputs are of these.
    """
    counts = {"token": lengths, "asked": asked}
    behind = {output.name: counts[output.per] for output in outputs if output.per in counts}
    return [
        {
            name: each[row, : behind[name][row]] if name in behind else each[row]
            for name, each in values.items()
        }
        for row in range(len(lengths))
    ]


def require_numbers(outputs: Outputs) -> None:
    """Refuse to answer from what is no number.

    Raises:
        OutputError: a value is NaN or infinite.
    """
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise OutputError(
                f"the model's {name} hold {values[~np.isfinite(values)].flat[0]}: expected finite "
                "numbers; its weights are damaged, or half precision overflows (try fp32)"
            )
