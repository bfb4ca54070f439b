"""Settings of the machine: what is nonsense is refused before anything is loaded, threads are set and given back."""

import pytest
import torch
from omegaconf import OmegaConf

from alignlab.app.work.training import DECODERS, LAYOUTS, check_hardware, settle
from alignlab.errors import ConfigError
from alignlab.kernels.plain import PLAIN_FORMS, is_plain
from alignlab.methods.optimization import AdamW
from alignlab.models.decoding import Decoder
from alignlab.models.packing import Layout


def hardware(**settings):
    usual = {"accelerator": "cpu", "layout": "auto", "decoder": "auto", "threads": None, "plain": []}
    return OmegaConf.create({"hardware": {**usual, **settings}})


def test_threads_are_set_and_given_back():
    before = torch.get_num_threads()
    settle(hardware(threads=before + 1))
    assert torch.get_num_threads() == before + 1
    settle(hardware())
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


def test_plain_forms_are_chosen_for_one_run_alone():
    for plain, expected in ((["gelu", "gae"], {"gelu", "gae"}), ("adamw", {"adamw"}), ([], set()), (None, set())):
        settle(hardware(plain=plain))
        assert {name for name in PLAIN_FORMS if is_plain(name)} == expected
    with pytest.raises(ConfigError, match=r"hardware.plain: gellu: allowed are adamw, gae, gelu, room_for_gradient"):
        settle(hardware(plain=["gellu"]))
    for nonsense in (1, True, [None], ["gelu", 1], [["gelu"]]):
        with pytest.raises(ConfigError, match=r"hardware.plain: .*: allowed are"):
            settle(hardware(plain=nonsense))


def test_the_plain_optimizer_is_torchs_own():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    for plain, fused in (([], True), (["adamw"], None)):
        settle(hardware(plain=plain))
        assert AdamW().build([weight], 0.1).defaults["fused"] is fused
