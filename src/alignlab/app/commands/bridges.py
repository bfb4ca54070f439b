"""Bridges to other people's evaluations: their input files, and the command to type in their own environment.

Nothing of them is imported or needed here. Written for lm-evaluation-harness 0.4 (`lm_eval --model hf`), AlpacaEval
0.6 (`alpaca_eval --model_outputs`) and RewardBench 0.1 (`rewardbench --model`).
"""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from alignlab.app.commands.chat import Listed, asking_of
from alignlab.app.runs.runfolder import read, write_atomic
from alignlab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from alignlab.evaluate.speaker import Asking, Sampling
    from alignlab.models.policy import Policy
    from alignlab.models.reward_model import RewardModel

_HARNESS_TASKS = "hellaswag,arc_easy,truthfulqa_mc2"
_CHECKED = (("What is two and two?", " Four."), ("Name a colour.", " Red, or a warm yellow."), ("Hello", " no"))
"""Prompts and replies on which an exported reward model is compared with the run's own."""
_SAME = 1e-3  # raw scores that differ by less are the same, but for rounding


class Bridge(NamedTuple):
    """What was written, the command that uses it, and what to know."""

    folder: Path
    command: str
    notes: list[str]


def save_merged(run: Listed, folder: Path) -> Path:
    """The run's model as full weights that transformers loads alone, an adapter folded in; `folder` must be new.

    Raises:
        ConfigError: the folder is there already.
        ModelError: the adapter stands on a quantised base, which merging would change.
    """
    from alignlab.errors import ModelError
    from alignlab.models.cards import model_card
    from alignlab.models.saving import load_policy, load_reward_model, save_policy, save_reward_model
    from alignlab.models.tokenizers import loading_class

    if folder.exists():
        raise ConfigError(f"--merge {folder}: it is there already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    is_policy = run.method.produces == "policy"
    role = load_policy(run.folder, merge=True) if is_policy else load_reward_model(run.folder)
    if role.has_adapter:
        raise ModelError(f"{run.folder}: its adapter stands on a quantised base; merging would change it")
    record = read(run.folder)
    card = model_card(
        name=run.folder.resolve().name,
        produces=run.method.produces,
        base=run.trained.model.init_from or "random weights",
        method=run.method.__name__,
        data=str(run.trained.data.source._target_).rpartition(".")[2],
        metrics={name: value for name, value in (record.get("metrics") or {}).items() if value is not None},
        command=shlex.join(["alignlab", *record.get("overrides", [])]),
        tokenizer=loading_class(role.tokenizer),
    )
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        save: Any = save_policy if is_policy else save_reward_model
        shutil.move(save(role, Path(scratch), card=card), folder)
    return folder


def lm_eval(run: Listed, out: Path) -> Bridge:
    """lm-evaluation-harness loads a run as it is: full weights, or the base with peft=."""
    from alignlab.models.origins import locate
    from alignlab.models.tokenizers import load_tokenizer

    located, notes = locate(str(run.folder)), []
    if located.adapter is None:
        args = {"pretrained": located.base.name}
    else:
        args = {"pretrained": located.base.name, "peft": str(located.adapter), "tokenizer": str(located.adapter)}
        if located.base.revision is not None:
            args["revision"] = located.base.revision
    if located.quantization is not None:
        notes.append("The base was quantised in training; this command loads it in its own precision.")
    command = ["lm_eval", "--model", "hf", "--model_args", ",".join(f"{key}={value}" for key, value in args.items())]
    command += ["--tasks", _HARNESS_TASKS, "--batch_size", "auto", "--output_path", str(out / "results")]
    if load_tokenizer(located.files).chat_template and run.trained.data.template != "plain":
        command.append("--apply_chat_template")
    if any("," in value for value in args.values()):
        raise ConfigError(f"{run.folder}: a path with a comma cannot stand in --model_args; move the run")
    return _written(out, command, notes)


def alpaca_eval(name: str, answers: Sequence[dict[str, str]], out: Path) -> Bridge:
    """`answers` (instruction, output, and dataset where it is known) as AlpacaEval's model_outputs.json."""
    if not answers:
        raise DataError("export: there are no answers to write")
    outputs = [{**answer, "output": answer["output"].strip(), "generator": name} for answer in answers]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model_outputs.json"
    write_atomic(path, json.dumps(outputs, ensure_ascii=False, indent=1) + "\n")
    command = ["alpaca_eval", "--model_outputs", str(path), "--annotators_config", "weighted_alpaca_eval_gpt4_turbo"]
    command += ["--output_path", str(out / "results")]
    notes = [
        "AlpacaEval asks OpenAI's API (OPENAI_API_KEY) and compares with answers to the same instructions: its own "
        "805, or for others those you name with --reference_outputs FILE (instruction, output).",
    ]
    return _written(out, command, notes)


def answers_of_samples(samples: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The replies of an evaluation as answers; of a dialogue the last turn is the instruction."""
    return [{"instruction": _last_turn(sample["prompt"]), "output": sample["response"]} for sample in samples]


def fresh_answers(
    policy: "Policy", asking: "Asking", records: Sequence[dict[str, Any]], sampling: "Sampling", *, seed: int
) -> list[dict[str, str]]:
    """The policy's answers to the instructions of `records`, each asked alone, in the run's own prompt format.

    DataError for a record without an instruction. A field `input` is put below it, as Alpaca's data have it.
    """
    from alignlab.evaluate.speaker import Speaker

    answers = []
    for number, record in enumerate(records, start=1):
        instruction = record.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            raise DataError(f"--prompts, row {number}: field 'instruction' is missing or empty")
        asked = f"{instruction}\n\n{record['input']}" if record.get("input") else instruction
        speaker = Speaker(policy, asking=asking, reference=None, seed=seed + number)
        reply = speaker.answer(asked, sampling, write=len)
        known = {"dataset": str(record["dataset"])} if record.get("dataset") else {}
        answers.append({**known, "instruction": instruction, "output": reply.response})
    return answers


def reward_bench(run: Listed, out: Path) -> Bridge:
    """A reward model that transformers alone loads, with a chat template that writes texts as its training did."""
    from alignlab.models.saving import load_reward_model

    model = load_reward_model(run.folder)
    folder = out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    save_merged(run, folder)
    asking = asking_of(run)
    _set_tokenizer(folder, model, asking)
    batch, gap = 8, _difference(folder, model, asking, together=True)
    if gap > _SAME:
        batch, gap = 1, _difference(folder, model, asking, together=False)
    command = ["rewardbench", f"--model={folder}", "--not_quantized", f"--batch_size={batch}"]
    command += [f"--max_length={model.text_format.max_length or 512}", f"--output_dir={out / 'results'}/"]
    notes = [
        f"transformers alone gives the raw scores of the run within {gap:.1e} on {len(_CHECKED)} texts, as RewardBench "
        "writes them; it counts which of two scores is greater, so our scale does not matter there.",
        f"reward = {model.gain.item():.6g} * score + {model.bias.item():.6g}: transformers' classifier has no place "
        "for this scale; it stays in alignlab_reward.json.",
    ]
    if batch == 1:
        notes.append("batch_size=1: RewardBench pads on the left, and this network counts padding as positions.")
    if gap > _SAME:
        notes.append("THE SCORES DIFFER: the tokenizer's own chat template writes other texts than the training did.")
    return _written(out, command, notes)


def _set_tokenizer(folder: Path, model: "RewardModel", asking: "Asking") -> None:
    """Gives the exported tokenizer a template where it has none, and a pad token that never ends a text."""
    tokenizer, like = model.tokenizer, model.text_format
    if not tokenizer.chat_template or like.template == "plain":
        tokenizer.chat_template = _template(asking, end="{{ eos_token }}" if like.append_eos else "")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # transformers scores the last token that is no pad: an end token that doubles as pad would be passed over
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.bos_token or tokenizer.eos_token
        config = json.loads((folder / "config.json").read_text())
        write_atomic(folder / "config.json", json.dumps({**config, "pad_token_id": tokenizer.pad_token_id}, indent=2))
    tokenizer.save_pretrained(folder)


def _template(asking: "Asking", *, end: str) -> str:
    """A chat template that frames a user's turn as the run's data does, and puts the assistant's behind it."""
    from alignlab.data.templates import plain_prompt

    mark = "\ue000"
    prompt = asking.prompt_of([{"role": "user", "content": mark}])
    text = prompt if isinstance(prompt, str) else plain_prompt(prompt)
    before, _, after = text.partition(mark)
    lead = "" if isinstance(prompt, str) else "{% if message['content'][:1] != ' ' %}{{ ' ' }}{% endif %}"
    user = f"{{{{ {json.dumps(before)} + message['content'] + {json.dumps(after)} }}}}"
    reply = f"{lead}{{{{ message['content'] }}}}{end}"
    chosen = f"{{% if message['role'] == 'assistant' %}}{reply}{{% else %}}{user}{{% endif %}}"
    return f"{{% for message in messages %}}{chosen}{{% endfor %}}"


def _difference(folder: Path, model: "RewardModel", asking: "Asking", *, together: bool) -> float:
    """The largest difference of raw scores, transformers alone on the folder against the run's own, over `_CHECKED`.

    `together`: as one batch, padded on the left as RewardBench pads.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from alignlab.models.quiet import quiet
    from alignlab.rollout.rewards.model import padded, text_encoder

    with quiet():
        theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in _CHECKED]
    texts = [str(tokenizer.apply_chat_template(turn, tokenize=False)) for turn in turns]
    if tokenizer.bos_token:  # RewardBench takes it off, since tokenizing puts it back
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]
    groups = [texts] if together else [[text] for text in texts]
    with torch.no_grad():
        told = [tokenizer(group, padding=True, return_tensors="pt", return_token_type_ids=False) for group in groups]
        scores = torch.cat([theirs(**batch).logits[:, 0] for batch in told])
        prompts = [asking.prompt_of([{"role": "user", "content": prompt}]) for prompt, _ in _CHECKED]
        encoded = text_encoder(model).replies(prompts, [reply for _, reply in _CHECKED])
        pad = model.tokenizer.pad_token_id
        own = model(padded([row.input_ids for row in encoded], pad, model.device))
    return float((scores - own).abs().max())


def _written(out: Path, command: Sequence[str], notes: list[str]) -> Bridge:
    """The command as a script beside the files."""
    out.mkdir(parents=True, exist_ok=True)
    text = shlex.join(command)
    write_atomic(out / "command.sh", f"{text}\n")
    return Bridge(out, text, notes)


def _last_turn(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
