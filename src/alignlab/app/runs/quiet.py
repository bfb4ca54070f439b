"""A quiet start: no adverts, no tips, no login prompt. In one place, called before anything heavy is imported."""

import logging
import os
import sys
import warnings

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # else a warning at every fork of a data loader
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
    "WANDB_SILENT": "true",
    "WANDB_MODE": "offline",  # online mode asks for a key, and a dead server stops the run: logger=wandb says which
    "POSSIBLE_USER_WARNINGS": "off",  # Lightning's advice on worker counts
}
_LIBRARIES = (
    "torch|lightning|lightning_utilities|transformers|peft|bitsandbytes|datasets|huggingface_hub|wandb|torchmetrics"
)
_CHATTY = (
    "lightning.pytorch.utilities.rank_zero",  # "GPU available: False ...", tips
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.accelerators.cuda",
    "bitsandbytes",
    "httpx",
    "filelock",
)


def quiet() -> None:
    """Set what is not set already: a user's own environment, and `python -W`, have the last word."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=rf"({_LIBRARIES})(\.|$)")
