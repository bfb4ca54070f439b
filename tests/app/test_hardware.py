"""Settings of the machine: what is nonsense is refused before anything is loaded, threads are set and given back."""

import pytest
import torch
from omegaconf import OmegaConf

from alignlab.app.work.training import DECODERS, LAYOUTS, check_hardware, use_threads
from alignlab.errors import ConfigError
from alignlab.models.decoding import Decoder
from alignlab.models.packing import Layout


def hardware(**settings):
    return OmegaConf.create(
        {"hardware": {"accelerator": "cpu", "layout": "auto", "decoder": "auto", "threads": None, **settings}}
    )


def test_threads_are_set_and_given_back():
    before = torch.get_num_threads()
    use_threads(hardware(threads=before + 1))
    assert torch.get_num_threads() == before + 1
    use_threads(hardware())
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": "many"}, {"layout": "paked"}, {"decoder": "fast"}])
def test_nonsense_is_refused(settings):
    [(name, value)] = settings.items()
    with pytest.raises(ConfigError, match=f"hardware.{name}={value}"):
        check_hardware(hardware(**settings))


def test_every_layout_and_every_decoder_of_the_models_may_be_asked_for():
    assert set(LAYOUTS) == set(Layout.__args__) and set(DECODERS) == set(Decoder.__args__)
    for layout in LAYOUTS:
        check_hardware(hardware(layout=layout))
    for decoder in DECODERS:
        check_hardware(hardware(decoder=decoder))
