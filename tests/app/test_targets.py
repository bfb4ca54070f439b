"""Keys, names and needs: what makes two commands the same run."""

import json

import pytest

from alignlab.app.configs import paths
from alignlab.app.planning.targets import Planner, plan
from alignlab.errors import ConfigError

DPO = "experiments=quickstart/dpo"


def test_the_same_words_in_another_order_are_the_same_target(world):
    assert world.target(f"{DPO} seed=1 adapter.rank=4").key == world.target(f"adapter.rank=4 seed=1 {DPO}").key


@pytest.mark.parametrize(
    "change",
    ["seed=1", "method.loss.beta=0.2", "adapter.rank=4", "model=small", "hardware.precision=bf16-mixed", "data.size=7"],
)
def test_what_may_change_a_number_changes_the_key(world, change):
    assert world.target(f"{DPO} {change}").key != world.target(DPO).key


@pytest.mark.parametrize(
    "change",
    [
        *(
            "name=mine",
            "paths.runs=elsewhere",
            "logger=tensorboard",
            "hardware.num_workers=2",
            "hardware.progress=false",
        ),
        *("hardware=cpu_ddp", "hardware.micro_batch_size=2", "hardware.gradient_checkpointing=true", "fresh=true"),
        "evaluation.num_prompts=3",
    ],
)
def test_what_changes_no_number_does_not(world, change):
    assert world.target(f"{DPO} {change}").key == world.target(DPO).key


def test_a_parents_key_is_in_the_childs(world):
    child, other = world.target(DPO), world.target(f"{DPO} needs.sft.override.method.lr=0.5")
    assert child.key != other.key and child.content == other.content | {"model": child.content["model"]}


def test_a_parent_typed_by_hand_is_the_one_that_a_child_needs(world):
    for changes in ("", "model=small model.hidden=8 seed=3"):
        [parent] = world.target(f"{DPO} {changes}").needs["sft"]
        assert parent.key == world.target(f"experiments=quickstart/sft {changes}").key


def test_the_command_of_a_parent_builds_that_parent(world):
    again = Planner(paths.roots())
    for target in plan([world.target("experiments=quickstart")]):
        assert again.target(target.overrides).key == target.key


def test_what_is_not_inherited_never_rebuilds_a_parent(world):
    one, other = world.target(DPO), world.target(f"{DPO} adapter.rank=64 method.loss.beta=0.9 data.size=3 method.lr=1")
    assert one.needs["sft"][0].key == other.needs["sft"][0].key


def test_a_choice_is_handed_up_with_what_was_changed_below_it(world):
    changes = "model=small model.hidden=8 +model.dropout=0.1 ~model.layers model.settings.heads=8"
    [parent] = world.target(f"{DPO} {changes}").needs["sft"]
    assert parent.overrides == (
        *("experiments=quickstart/sft", "model=small", "model.hidden=8", "model.settings.heads=8"),
        *("++model.dropout=0.1", "~model.layers", "seed=0"),
    )


def test_a_setting_below_an_inherited_group_may_stay_behind(world):
    line = f"{DPO} data.max_length=9 data.size=5 needs.sft.inherit=[model,data,'~data.size',seed]"
    [parent] = world.target(line).needs["sft"]
    assert parent.cfg.data.max_length == 9 and parent.cfg.data.size == 100


def test_what_is_wired_to_a_need_is_not_handed_up(world):
    [parent] = world.target("experiments=quickstart/reward").needs["sft"]
    assert not any("init_from" in override for override in parent.overrides)


def test_hardware_paths_and_logger_pass_on(world):
    line = f"{DPO} hardware=cpu_ddp hardware.num_workers=3 paths.runs=elsewhere logger=tensorboard"
    [parent] = world.target(line).needs["sft"]
    assert set(line.split()[1:]) <= set(parent.overrides)
    [parent] = world.target(DPO).needs["sft"]
    assert not any(override.startswith(("hardware", "paths", "logger")) for override in parent.overrides)


def test_hardware_that_a_parent_chose_itself_stands_unless_the_child_says_otherwise(toy):
    toy.edit("experiments/quickstart/sft.yaml", "[{", "[{override /hardware: cpu_ddp}, {")
    assert toy.target(DPO).needs["sft"][0].choices["hardware"] == "cpu_ddp"
    assert toy.target(f"{DPO} hardware=cpu").needs["sft"][0].choices["hardware"] == "cpu"


def test_inherit_may_be_typed_and_may_name_a_value(world):
    [parent] = world.target(f"{DPO} needs.sft.inherit=[model,data.max_length] data.max_length=9").needs["sft"]
    assert parent.cfg.data.max_length == 9 and parent.cfg.model.max_length == 9


def test_a_given_run_folder_gives_the_key_that_the_built_need_gives(toy):
    toy.run("experiments=quickstart/sft")
    folder = toy.folder("quickstart-sft")
    assert toy.target(f"{DPO} needs.sft.path={folder}").key == toy.target(DPO).key
    folder = folder.rename(toy.root / "moved")
    assert toy.target(f"{DPO} needs.sft.path={folder}").key == toy.target(DPO).key


def test_an_evaluation_is_of_this_very_training(world):
    line = f"{DPO} method.loss.beta=0.3 seed=1"
    evaluation, training = world.target(f"{line} task=evaluate evaluation.num_prompts=9 fresh=true"), world.target(line)
    [of] = evaluation.needs["of"]
    assert of.key == training.key and not of.cfg.fresh
    assert set(evaluation.needs) == {"of", "reward"}
    assert evaluation.needs["reward"][0].key == world.target("experiments=quickstart/reward seed=1").key
    assert evaluation.key != world.target(f"{line} task=evaluate").key


def test_only_the_evaluation_node_and_the_run_are_in_an_evaluations_key(world):
    line = f"{DPO} task=evaluate"
    assert set(world.target(line).content) == {"task", "hardware", "evaluation"}
    assert world.target(line).key != world.target(f"{line} evaluation.seed=4").key
    assert world.target(line).key == world.target(f"{line} hardware.progress=false").key


def test_other_data_to_evaluate_on_changes_the_evaluation_and_not_what_it_is_of(world):
    line = "experiments=quickstart/reward task=evaluate"
    own = world.target(line)
    other = world.target(f"{line} data@evaluation.data=files evaluation.data.size=7")
    assert other.cfg.evaluation.data.size == 7 and own.cfg.evaluation.data is None
    assert other.key != own.key and other.needs["of"][0].key == own.needs["of"][0].key


def test_the_code_of_an_evaluation_is_in_its_key_and_not_in_the_trainings(toy):
    before = toy.target(f"{DPO} task=evaluate")
    toy.edit("toylab/evaluate.py", "return {}", "return {1: 2}")
    after = toy.target(f"{DPO} task=evaluate")
    assert after.key != before.key and after.needs["of"][0].key == before.needs["of"][0].key


def test_editing_a_loss_rebuilds_what_uses_it_and_nothing_else(toy):
    lines = {"dpo": DPO, "ipo": f"{DPO} method/loss=ipo", "sft": "method=sft", "reward": "method=reward"}
    toy.edit("toylab/methods.py", "from toylab.losses import PreferenceLoss", "PreferenceLoss = object")
    before = {name: toy.target(line).key for name, line in lines.items()}
    toy.edit("toylab/losses.py", "super().__init__(beta)", "super().__init__(beta * 1)")
    assert [name for name, line in lines.items() if toy.target(line).key != before[name]] == ["dpo", "ipo"]


def test_local_data_counts_by_content_wherever_it_lies(toy):
    for place in ("here", "there"):
        (toy.root / place).mkdir()
        (toy.root / place / "rows.jsonl").write_text('{"prompt": 1}\n')
    keys = [toy.target(f"data=files paths.data={place}").key for place in ("here", "there", str(toy.root / "here"))]
    assert len(set(keys)) == 1
    (toy.root / "there" / "rows.jsonl").write_text('{"prompt": 22}\n')
    assert toy.target("data=files paths.data=there").key != keys[0]


def test_a_local_model_folder_counts_by_its_files(toy):
    model = toy.root / "weights"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = toy.target("model.init_from=weights").key
    (model / ".cache").write_text("of the hub")
    assert toy.target("model.init_from=weights").key == before
    (model / "config.json").write_text("{ }")
    assert toy.target("model.init_from=weights").key != before
    assert toy.target("model.init_from=org/name").content["model"]["init_from"] == "org/name"


def test_the_name_is_the_experiments_path(world):
    names = {
        DPO: "quickstart-dpo",
        f"{DPO} task=evaluate": "quickstart-dpo.evaluate",
        "method=dpo": "dpo",
        "task=table": "table",
        f"{DPO} name=mine": "mine",
    }
    assert {line: world.target(line).name for line in names} == names
    assert world.planner.target(["name='a b=c,d/e'"]).name == "a-b-c-d-e"


def test_the_key_finds_the_folder_whatever_its_name(toy):
    toy.run("experiments=quickstart/sft")
    assert toy.target("method=sft").folder == toy.folder("quickstart-sft").relative_to(toy.root)


def test_a_table_needs_a_grid_of_runs_and_shares_what_is_shared(world):
    table = world.target("experiments=quickstart")
    assert [len(parents) for parents in table.needs.values()] == [8, 1]
    kinds = [f"{t.kind} {t.method}" for t in plan([table])]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "train sft": 2,
        "train dpo": 8,
        "train reward": 2,
        "evaluate dpo": 8,
        "train ppo": 1,
        "evaluate ppo": 1,
        "table None": 1,
    }
    assert kinds[0] == "train sft" and kinds[-1] == "table None"


def test_a_union_of_grids(toy):
    toy.edit("experiments/quickstart.yaml", "grid: {method/loss", "grid:\n      - {seed: [5, 6]}\n      - {method/loss")
    assert len(toy.target("experiments=quickstart").needs["dpo"]) == 10


def test_a_table_hands_up_what_it_inherits(world):
    table = world.target("experiments=quickstart model=small seed=4")
    assert {p.needs["of"][0].cfg.model.hidden for p in table.parents} == {64}
    assert table.needs["ppo"][0].needs["of"][0].cfg.seed == 4


def test_a_target_that_needs_itself_is_refused(toy):
    with open(toy.root / "experiments/quickstart/sft.yaml", "a") as file:
        file.write("needs:\n  again: {experiments: quickstart/sft, inherit: [model, data, seed]}\n")
    target = toy.target("experiments=quickstart/sft")
    faults = [fault for t in (target, *target.parents) for fault in t.faults]
    assert any("needs itself" in fault for fault in faults)


def test_planning_a_grid_composes_once_per_choice(toy):
    planner = Planner(paths.roots())
    jobs = planner.expand([DPO, "method.loss.beta=0.1,0.2,0.3", "seed=0,1,2"])
    assert len(plan(planner.target(job) for job in jobs)) == 9 + 3
    assert planner.composer.num_composed < 8


def test_the_key_is_a_hash_of_plain_json(world):
    target = world.target(DPO)
    assert json.loads(json.dumps(target.content)) == target.content
    assert len(target.key) == 10 and "init_from" in target.content["model"]
    assert target.content["model"]["init_from"] == f"need:{target.needs['sft'][0].key}"


def test_zero_jobs_are_an_error(toy):
    with pytest.raises(ConfigError, match="0 runs"):
        toy.planner().expand(["experiments=glob(nothing/*)"])
