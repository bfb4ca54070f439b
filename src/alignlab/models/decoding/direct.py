"""The decode loop of ours: the network's own submodules around our cache, our positions and our attention call.

Hidden states are kept for real tokens only, [N, D]: a prompt's padding is computed nowhere but in the attention. The
last layer of a prompt answers for its last column only. In a step all queries that share a key head are handed to the
attention as one block, so that grouped-query heads are never copied.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from alignlab.models.backbone import positions_of
from alignlab.models.decoding.cache import Columns, KeyValueCache, prompt_visibility
from alignlab.models.decoding.layers import Family, Layer, Rotation


class DirectNetwork:
    """A `DecodingNetwork` of a known family."""

    def __init__(self, family: Family, prompt_mask: Bool[Tensor, "B T"], *, max_tokens: int) -> None:
        num_rows, self.width = prompt_mask.shape
        capacity = self.width + max_tokens
        self.family = family
        self.cache = KeyValueCache(num_rows=num_rows, prompt_width=self.width, capacity=capacity)
        self.prompt_mask = prompt_mask
        self.bias: Float[Tensor, "B 1 1 C"] | None = None  # 0, or -inf at padding; None where there is no padding
        if not bool(prompt_mask.all()):
            hidden_columns = torch.zeros(num_rows, 1, 1, capacity, dtype=torch.bool, device=prompt_mask.device)
            hidden_columns[:, 0, 0, : self.width] = ~prompt_mask
            self.bias = torch.zeros(hidden_columns.shape, device=prompt_mask.device)
            self.bias.masked_fill_(hidden_columns, -torch.inf)
        self.positions = positions_of(prompt_mask)[:, -1]  # of each row's last token
        self.rotation = family.rotation(capacity)

    def read_prompts(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """See `DecodingNetwork`."""
        rows, columns = self.prompt_mask.nonzero(as_tuple=True)
        positions = positions_of(self.prompt_mask)[rows, columns]
        last = self.prompt_mask.sum(1).cumsum(0) - 1  # the place of each row's last token among all N
        place: Columns = (rows, slice(None), columns)
        visible = prompt_visibility(self.prompt_mask)
        rotation = self._rotation_at(positions)
        hidden = self.family.embed(input_ids[rows, columns], positions)
        for number, layer in enumerate(self.family.layers):
            query, key, value = layer.project(hidden, rotation)
            keys, values = self.cache.write(number, key, value, place)
            if number == len(self.family.layers) - 1:
                hidden, attended = hidden[last], self._attend_one(layer, query[last], keys, values)
            else:
                attended = self._attend_prompt(layer, query, keys, values, rows, columns, visible)
            hidden = layer.finish(hidden, attended)
        return self.family.normalize(hidden)

    def read_tokens(self, tokens: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """See `DecodingNetwork`."""
        place: Columns = (slice(None), slice(None), self.width)
        self.width += 1
        self.positions = self.positions + 1
        rotation = self._rotation_at(self.positions)
        hidden = self.family.embed(tokens, self.positions)
        for number, layer in enumerate(self.family.layers):
            query, key, value = layer.project(hidden, rotation)
            keys, values = self.cache.write(number, key, value, place)
            hidden = layer.finish(hidden, self._attend_one(layer, query, keys, values))
        return self.family.normalize(hidden)

    def keep(self, rows: Int[Tensor, "K"]) -> None:
        """See `DecodingNetwork`."""
        self.cache.keep(rows, width=self.width)
        self.positions = self.positions[rows]
        self.bias = None if self.bias is None else self.bias[rows]

    def _rotation_at(self, positions: Int[Tensor, "N"]) -> Rotation | None:
        """That of these positions, for networks that rotate."""
        if self.rotation is None:
            return None
        return Rotation(self.rotation.cosine[positions], self.rotation.sine[positions])

    def _attend_one(
        self, layer: Layer, query: Float[Tensor, "B H E"], keys: Float[Tensor, "B K C E"], values: Tensor
    ) -> Float[Tensor, "B HE"]:
        """One query per row and head, at the last column."""
        first = 0 if layer.window is None else max(0, self.width - layer.window)
        seen = slice(first, self.width)
        bias = None
        if self.bias is not None:
            self.bias = self.bias.to(values.dtype)
            bias = self.bias[..., seen]
        num_rows, num_heads, size = query.shape
        num_groups = keys.shape[1]
        out = scaled_dot_product_attention(
            query.to(values.dtype).view(num_rows, num_groups, num_heads // num_groups, size),
            keys[:, :, seen],
            values[:, :, seen],
            attn_mask=bias,
            scale=layer.scale,
        )
        return out.reshape(num_rows, num_heads * size)

    def _attend_prompt(
        self,
        layer: Layer,
        query: Float[Tensor, "N H E"],
        keys: Float[Tensor, "B K C E"],
        values: Float[Tensor, "B K C E"],
        rows: Int[Tensor, "N"],
        columns: Int[Tensor, "N"],
        visible: Bool[Tensor, "B 1 T T"],
    ) -> Float[Tensor, "N HE"]:
        """All queries of the prompts."""
        num_rows, width = self.prompt_mask.shape
        padded = values.new_zeros(num_rows, width, *query.shape[1:])
        padded[rows, columns] = query.to(values.dtype)
        if layer.window is not None:
            visible = visible & torch.ones_like(visible[0, 0]).triu(1 - layer.window)
        out = scaled_dot_product_attention(
            padded.transpose(1, 2),
            keys[:, :, :width],
            values[:, :, :width],
            attn_mask=visible,
            scale=layer.scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        return out.transpose(1, 2)[rows, columns].flatten(1)
