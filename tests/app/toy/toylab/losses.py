class PreferenceLoss:
    needs_reference = True

    def __init__(self, beta: float) -> None:
        self.beta = beta


class DPOLoss(PreferenceLoss):
    def __init__(self, beta: float, label_smoothing: float = 0.0) -> None:
        super().__init__(beta)


class IPOLoss(PreferenceLoss):
    pass
