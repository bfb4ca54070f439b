"""Any value can be handed up as text."""

import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from alignlab.app.configs.spell import flat, spell

VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -3,
        1.0,
        1e-4,
        1e22,
        1e16,
        0.1,
        float("inf"),
        "",
        "a",
        "null",
        "true",
        "1",
        "1e-4",
        "1_000",
    ),
    *(
        "a b",
        "a,b",
        "a=b",
        "it's",
        'say "x"',
        "back\\slash",
        "end\\",
        "q\\'",
        "${seed}",
        "${oc.env:HOME,/x}",
        "x/${seed}/y",
    ),
    *(
        "a:b",
        "{x}",
        "[x]",
        "(x)",
        "%",
        "@",
        "~x",
        "$",
        "?",
        "???",
        "\u00e9 \u65e5",
        "a\nb",
        "\t",
        " lead",
        "trail ",
        "<|im_end|>",
    ),
    *("y", "no", "nan", "inf", "-inf", "0x10", "0.5.", "-", ".", "*", "#x", "a#b", [1, 2.0, "a,b", None], [], {}),
    *({"a": 1, "b": {"c": ["x y"]}}, {1: 2}, {"a.b": 1}, {"a-b": 1}, [[1], [{"a": "it's"}]]),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_spelled_is_read_back(value):
    read = OverridesParser.create().parse_override(f"k={spell(value)}").value()
    assert read == value and type(read) is type(value)


def test_random_text_is_read_back():
    parser, draw = OverridesParser.create(), random.Random(0)
    alphabet = "ab01'\"\\,=:{}[]()$ #?!%&*@~-+./_\n\t<>|;"
    for _ in range(300):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randint(0, 8)))
        assert parser.parse_override(f"k={spell(text)}").value() == text


def test_nested_and_dotted_keys_say_the_same():
    assert flat({"task": {"of": 1}, "a.b": {}, "c": [1]}) == [("task.of", 1), ("a.b", {}), ("c", [1])]
