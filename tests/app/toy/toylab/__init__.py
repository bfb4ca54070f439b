from toylab.losses import DPOLoss, IPOLoss

__all__ = ["DPOLoss", "IPOLoss"]
