from torch import nn

from toylab.losses import PreferenceLoss
from toylab.maths import helper


class Method(nn.Module):
    helper = staticmethod(helper)


class SFT(Method):
    def __init__(self, model, *, lr: float, epochs: int = 1): ...


class Reward(Method):
    def __init__(self, model, *, lr: float): ...


class DPO(Method):
    def __init__(self, model, *, lr: float, loss: PreferenceLoss, optimizer=None): ...


class PPO(Method):
    def __init__(self, model, *, lr: float, kl: float, reward): ...


class Length:
    def __init__(self, target: int = 20): ...


class ModelReward:
    def __init__(self, path: str): ...
