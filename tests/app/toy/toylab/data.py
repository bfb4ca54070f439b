class Data:
    def __init__(
        self,
        *,
        size: int,
        max_length: int,
        train: str | None = None,
        fraction: float = 0.1,
        template: str = "auto",
        shuffle: bool = True,
    ): ...
