"""Every fault at once, a line each, with the path and the nearest name; exit code 2, and nothing built."""

import pytest

from alignlab.app.planning.asked import checked
from alignlab.errors import ConfigError

DPO = "experiments=quickstart/dpo"
FAULTS = {
    # what was typed
    "metod=ppo": "metod: there is no such setting or group; did you mean method?",
    "method=pppo": "method=pppo: there is no such option; did you mean ppo?",
    "experiments=quickstart/dpoo": "there is no such experiment; did you mean quickstart/dpo?",
    "method/los=ipo": "method/los: there is no such group; did you mean method/loss?",
    "method.loss.betta=1 method=dpo": "method.loss.betta: DPOLoss has no such setting; did you mean beta?",
    "+method.loss.betta=1 method=dpo": "method.loss.betta: DPOLoss has no such setting; did you mean beta?",
    "++method.lrr=1": "method.lrr: SFT has no such setting; did you mean lr?",
    "hardware.device=2": "hardware.device: there is no such setting; did you mean devices?",
    "+hardware.device=2": "hardware.device: there is no such setting; did you mean devices?",
    "+sed=3": "sed: there is no such setting or group; did you mean seed?",
    "+extra.thing=3": "extra.thing: there is no such setting or group",
    "method.epochs=3": "method.epochs: SFT takes it, but its yaml does not list it: type +method.epochs=3",
    "seed=abc": "seed: Value 'abc' of type 'str' could not be converted to Integer",
    "seed=1,2": "seed=1,2: several values are a sweep, which needs -m; a list is written seed=[...]",
    "~seeed": "seeed: there is no such setting or group; did you mean seed?",
    f"{DPO} needs.stf.path=x": "needs.stf.path: this target needs no stf; did you mean sft?",
    f"{DPO} needs.sft.inherits=[]": "needs.sft.inherits: a need has no inherits; did you mean inherit?",
    # what the classes say
    "method.lr=fast": "method.lr=fast: this is text, but it must be a number",
    "data.size=1.5": "data.size=1.5: this is a number, but it must be a whole number",
    "model.layers=null": "model.layers=null: this is null, but it must be a whole number",
    "data.template=[a,b]": "data.template=['a', 'b']: this is a list, but it must be text",
    "+data.shuffle=1": "data.shuffle=1: this is a whole number, but it must be true or false",
    "adapter.rank=4": "adapter.rank: NoAdapter has no such setting; adapter=lora has it",
    "+adapter.rank=4": "adapter.rank: NoAdapter has no such setting",
    "adapter=lora ~adapter.rank": "adapter.rank: LoRA needs it, and it is not set",
    "method=ppo": "method.reward: method=ppo needs a reward: choose method/reward=length | model",
    "method=ppo method/reward=model": "method.reward.path: a value is required: type method.reward.path=...",
    "data=files": "data.train: it says ${paths.data}/rows.jsonl, and paths.data is not set: type paths.data=...",
    "data.template=${data.sizes}": "data.template: ${data.sizes} names nothing here; did you mean data.size?",
    # what a config may run
    "method.loss._target_=os.system method=dpo": "method.loss._target_: os.system is refused",
    "++model._target_=torch.load": "model._target_: torch.load is refused",
    "++model._target_=builtins.open": "model._target_: builtins.open is refused",
    "++model._target_=subprocess.run": "model._target_: subprocess.run is refused",
    "++model._target_=toylab.models.Bakbone": "toylab.models has no Bakbone; did you mean toylab.models.Backbone?",
    "++model._target_=toylab.modles.X": "toylab.modles.X cannot be found: there is no module toylab.modles",
    # needs
    f"{DPO} needs.sft.experiments=quickstart/stf": "needs.sft: experiments=quickstart/stf: there is no such experiment",
    f"{DPO} needs.sft.inherit=[modle]": "needs.sft.inherit: there is no modle here; did you mean model?",
    f"{DPO} needs.sft.inherit=[method.loss]": "needs.sft: method/loss: there is no loss to choose here",
    f"{DPO} needs.sft.override.method.lrr=1": "needs.sft: method.lrr: SFT has no such setting; did you mean lr?",
    f"{DPO} needs.sft.path=nowhere": "needs.sft.path: nowhere: there is no such folder",
    "+needs={more:{experiments:null}}": "needs.more.experiments: a need names the experiment",
    # what changes nothing
    "experiments=quickstart method.lr=7": "method.lr=7: it changes nothing here (table quickstart reads no",
    "experiments=quickstart data=files": "data=files: it changes nothing here",
    "evaluation.num_prompts=3": "evaluation.num_prompts=3: it changes nothing here (train sft reads no such setting)",
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_fault_is_one_line_with_a_way_out(world, line):
    with pytest.raises(ConfigError) as caught:
        checked(world.planner, [line.split()])
    assert FAULTS[line] in str(caught.value).splitlines()[0]


def test_a_fault_ends_the_command_with_2_before_anything_is_made(toy):
    for line in ("method.lr=fast", "methd.lr=1", "experiments=nowhere", "-m seed=0,x"):
        assert toy.run(line) == 2 and toy.err.count("\n") == 1 and toy.out == ""
    assert not (toy.root / "runs").exists()


FINE = [
    *("experiments=quickstart seed=1", "experiments=quickstart model=small", "experiments=quickstart task.rows=4"),
    *("experiments=quickstart/dpo method.loss.beta=0.1", "+method.epochs=3", "+model.settings.more=3", "name=mine"),
    *("experiments=quickstart/dpo needs.sft.override.method.lr=1e-4", "+model.dropout=0.1", "fresh=false"),
    *("experiments=quickstart hardware.progress=false logger=tensorboard", "method=ppo method/reward=length"),
    *("experiments=quickstart evaluation.num_prompts=3", "task=evaluate evaluation.num_prompts=3 method.lr=0.1"),
    "++method.optimizer={_target_:torch.optim.AdamW,_partial_:true,lr:0.1} experiments=quickstart/dpo",
]


@pytest.mark.parametrize("line", FINE)
def test_what_is_right_passes(world, line):
    assert checked(world.planner, [line.split()])


def test_all_faults_are_told_at_once(toy):
    line = "method=dpo method.loss.beta=x method.lrr=1 model.hidden=2.5 daat=1 hardware.foo=1 seed=1,2"
    assert toy.run(line) == 2
    starts = ("seed=1,2:", "method.lrr:", "daat:", "hardware.foo:", "model.hidden=2.5:", "method.loss.beta=x:")
    assert [fault.split(" ")[0] for fault in toy.err.splitlines()] == list(starts)


def test_what_stands_below_a_wrong_choice_is_not_judged(toy):
    assert toy.run("method=dppo method.loss.beta=0.1 adapter=lorra adapter.rank=4 daat=1") == 2
    assert [fault.split(" ")[0] for fault in toy.err.splitlines()] == ["method=dppo:", "adapter=lorra:", "daat:"]


def test_the_faults_of_needs_and_of_all_jobs_are_told_before_anything_is_built(toy):
    assert toy.run("-m experiments=quickstart/dpo,quickstart/sft seed=0,1 model.hidden=32,1.5 model.layers=x") == 2
    assert len(toy.err.splitlines()) == 2  # the same in every job and every parent, said once
    assert not (toy.root / "runs").exists()


def test_what_is_done_is_not_checked_again(toy):
    """A parent that is there needs nothing, not even the data it was made from."""
    (toy.root / "rows.jsonl").write_text("{}")
    toy.edit("experiments/quickstart/sft.yaml", "method: sft}", "method: sft}, {override /data: files}")
    assert toy.run("experiments=quickstart/dpo paths.data=.") == 0
    assert toy.run("plan experiments=quickstart/dpo paths.data=.") == 0


def test_hydras_own_overrides_are_no_faults(toy):
    assert toy.run("method=sft hydra.verbose=false") == 0
