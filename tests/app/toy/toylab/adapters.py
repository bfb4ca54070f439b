class NoAdapter:
    pass


class LoRA:
    def __init__(self, rank: int, *, alpha: float = 16.0, target_modules: list[str] | str | None = None): ...
