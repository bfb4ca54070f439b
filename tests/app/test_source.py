"""The code behind a name: found without importing, hashed without what changes nothing."""

import sys

import pytest

from alignlab.app.configs import paths
from alignlab.app.configs.source import Sources


@pytest.fixture
def sources(toy):
    sys.path.append(str(toy.root))
    return lambda: Sources(paths.roots())


def test_the_closure_follows_imports_within_the_package(sources):
    assert sources().closure("toylab.methods") == {"toylab.methods", "toylab.losses", "toylab.maths"}
    assert sources().closure("toylab.losses") == {"toylab.losses"}  # not the package's __init__, which imports it


def test_reading_imports_nothing(sources):
    sources().digest("toylab.models.Backbone")  # importing it would fail
    assert not [name for name in sys.modules if name.startswith("toylab")]


def test_a_change_below_is_seen_and_a_comment_is_not(sources, toy):
    names = ("toylab.methods.DPO", "toylab.losses.DPOLoss", "toylab.data.Data")
    before = [sources().digest(name) for name in names]
    toy.edit("toylab/losses.py", "class PreferenceLoss:", 'class PreferenceLoss:\n    """A loss."""\n    # of pairs')
    assert [sources().digest(name) for name in names] == before
    toy.edit("toylab/maths.py", "return x", "return x + 0")
    assert [a == b for a, b in zip(before, (sources().digest(name) for name in names))] == [False, True, True]


def test_a_name_is_followed_to_where_it_is_defined(sources):
    found = sources().definition("toylab.DPOLoss")
    assert found is not None and found[0] == "toylab.losses"
    assert sources().digest("toylab.DPOLoss") == sources().digest("toylab.losses.DPOLoss")


def test_relative_and_conditional_imports_count(sources, toy):
    (toy.root / "toylab" / "more.py").write_text(
        "if True:\n    from . import maths\nfrom .losses import DPOLoss as D\n"
    )
    assert sources().closure("toylab.more") == {"toylab.more", "toylab.maths", "toylab.losses"}
    assert sources().definition("toylab.more.D")[0] == "toylab.losses"


def test_own_code_is_alignlab_and_what_lies_in_the_users_folders(sources):
    found = sources()
    assert found.is_own("alignlab.errors.ConfigError") and found.is_own("toylab.losses.DPOLoss")
    for foreign in ("os.system", "torch.load", "builtins.open", "numpy.array", "json.loads", "nowhere.x"):
        assert not found.is_own(foreign) and found.digest(foreign) is None


def test_a_users_class_on_top_of_ours_is_keyed_with_both(sources, toy):
    (toy.root / "toylab" / "mine.py").write_text("from alignlab.errors import ConfigError\nclass Mine: pass\n")
    assert sources().closure("toylab.mine") == {"toylab.mine", "alignlab.errors"}
