from typing import Literal

import a_heavy_library  # stands for torch: importing this module fails, reading it does not

assert a_heavy_library
Kind = Literal["decoder", "encoder"]


class Backbone:
    def __init__(
        self,
        *,
        hidden: int,
        layers: int = 2,
        kind: Kind = "decoder",
        init_from: str | None = None,
        max_length: int = 16,
        settings: dict | None = None,
        dropout: float = 0.0,
        seed: int,
    ): ...
