"""Keys and values of what has been read: one tensor each per layer, allocated once and filled in place.

Rows are aligned on the right of the prompt: column t of every row is read in the same step, so that writing one step
is writing one slice. A prompt's padding columns hold zeros and are masked; columns after the last one read hold nothing
yet, and where rows end early their memory is never touched.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Columns = tuple[slice | Int[Tensor, "N"], slice, int | Int[Tensor, "N"]]
"""Where N new entries go in [B, heads, columns]: rows, all heads, and one column for all rows or one for each."""


class KeyValueCache:
    """Up to `capacity` columns of B rows, the first `prompt_width` of which are written at once."""

    def __init__(self, *, num_rows: int, prompt_width: int, capacity: int) -> None:
        self.num_rows, self.prompt_width, self.capacity = num_rows, prompt_width, capacity
        self.keys: list[Float[Tensor, "B K C E"]] = []  # K heads of width E, C columns
        self.values: list[Float[Tensor, "B K C E"]] = []

    def write(
        self, layer: int, keys: Float[Tensor, "N K E"], values: Float[Tensor, "N K E"], place: Columns
    ) -> tuple[Float[Tensor, "B K C E"], Float[Tensor, "B K C E"]]:
        """Puts N entries there and gives all keys and values of the layer; later columns have no meaning.

        Both are kept in the values' dtype: under autocast a rotation leaves the keys in float32.
        """
        if len(self.keys) == layer:
            shape = (self.num_rows, values.shape[1], self.capacity, values.shape[2])
            for part in (self.keys, self.values):
                part.append(values.new_empty(shape))
                part[layer][:, :, : self.prompt_width] = 0.0  # a masked NaN would still be a NaN
        self.keys[layer][place] = keys.to(values.dtype)
        self.values[layer][place] = values
        return self.keys[layer], self.values[layer]

    def keep(self, rows: Int[Tensor, "K"], *, width: int) -> None:
        """Only these rows from now on, in this order; their first `width` columns are moved, in place.

        Moving is cheap where few rows change their number: a finished row's place is taken by the last one.
        """
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
        source = rows[moved]
        for part in (self.keys, self.values):
            for layer, tensor in enumerate(part):
                if len(moved):
                    tensor[moved, :, :width] = tensor[source, :, :width]
                part[layer] = tensor[: len(rows)]


def prompt_visibility(prompt_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Which columns (last axis) each column of the prompt attends to: itself and the real ones before it.

    A padding column sees itself, so that no softmax is over nothing; nobody sees it.
    """
    width = prompt_mask.shape[1]
    square = torch.ones(width, width, dtype=torch.bool, device=prompt_mask.device)
    return ((square.tril() & prompt_mask[:, None, :]) | square.tril().triu())[:, None]
