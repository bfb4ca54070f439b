"""Config nodes are bound to signatures read from source."""

import sys

import pytest

from alignlab.app.configs import paths
from alignlab.app.configs.signature import bind, signature
from alignlab.app.configs.source import Sources


@pytest.fixture
def sources(toy):
    sys.path.append(str(toy.root))
    return Sources(paths.roots())


def faults(sources, dotted, **node):
    return bind(sources, dotted, node, "x")


def test_a_wrong_name_gets_the_nearest(sources):
    assert faults(sources, "toylab.losses.DPOLoss", beta=0.1, label_smooth=0.0) == [
        "x.label_smooth: DPOLoss has no such setting; did you mean label_smoothing?"
    ]


def test_an_inherited_constructor_is_found(sources):
    assert faults(sources, "toylab.losses.IPOLoss", betta=1.0) == [
        "x.betta: IPOLoss has no such setting; did you mean beta?",
        "x.beta: IPOLoss needs it, and it is not set",
    ]


def test_a_partial_node_may_leave_settings_open_but_not_invent_any(sources):
    assert faults(sources, "toylab.methods.DPO", _partial_=True, lr=0.1) == []
    assert len(faults(sources, "toylab.methods.DPO", _partial_=True, lrr=0.1)) == 1


def test_a_class_without_constructor_takes_nothing(sources):
    assert faults(sources, "toylab.adapters.NoAdapter", rank=4) == ["x.rank: NoAdapter has no such setting"]


@pytest.mark.parametrize(
    ("name", "value", "ok"),
    [
        *(("size", 3, True), ("size", 3.0, False), ("size", True, False), ("size", "3", False), ("size", None, False)),
        *(("fraction", 1, True), ("fraction", 0.5, True), ("fraction", "0.5", False), ("fraction", False, False)),
        *(("shuffle", True, True), ("shuffle", 1, False), ("template", "x", True), ("template", 3, False)),
        *(("train", None, True), ("train", "x", True), ("train", ["x"], False)),
    ],
)
def test_plain_types_are_checked(sources, name, value, ok):
    found = faults(sources, "toylab.data.Data", _partial_=True, **{name: value})
    assert (found == []) == ok


def test_literals_lists_and_aliases_are_checked(sources):
    said = faults(sources, "toylab.models.Backbone", _partial_=True, kind="decodr")
    assert said == ["x.kind=decodr: this is text, but it must be decoder or encoder"]
    assert faults(sources, "toylab.adapters.LoRA", rank=2, target_modules=["q", "v"]) == []
    assert faults(sources, "toylab.adapters.LoRA", rank=2, target_modules="all-linear") == []
    assert faults(sources, "toylab.adapters.LoRA", rank=2, target_modules=["q", 1]) != []
    assert faults(sources, "toylab.models.Backbone", _partial_=True, settings=3) != []


def test_objects_and_unknown_annotations_pass(sources):
    assert faults(sources, "toylab.methods.DPO", model=1, lr=1.0, loss={"_target_": "x.Y"}) == []


def test_dataclasses_and_functions_have_signatures(sources, toy):
    (toy.root / "toylab" / "more.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\n    y: int = 3\n"
        "@dataclass\nclass B(A):\n    z: 'float | None' = None\n"
        "def f(a, *, b: str, **rest): ...\n"
    )
    found = signature(sources, "toylab.more.B")
    assert found is not None and {k: p.required for k, p in found.parameters.items()} == {
        "x": True,
        "y": False,
        "z": False,
    }
    assert len(faults(sources, "toylab.more.B", x=1, z="no")) == 1
    assert faults(sources, "toylab.more.f", a=1, b="x", anything=3) == []


def test_torch_is_bound_without_importing_it(sources):
    assert faults(sources, "torch.optim.AdamW", params=[], lr=0.1, wait_decay=0.1) == [
        "x.wait_decay: AdamW has no such setting; did you mean weight_decay?"
    ]
