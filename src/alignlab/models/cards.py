"""The README.md of a trained model: what it is, what it came from, how well it does, how to load it."""

from collections.abc import Mapping

_LOAD = {
    "policy model": """from transformers import AutoModelForCausalLM, {tokenizer}

model = AutoModelForCausalLM.from_pretrained("model")""",
    "policy adapter": """from peft import AutoPeftModelForCausalLM
from transformers import {tokenizer}

model = AutoPeftModelForCausalLM.from_pretrained("adapter")""",
    "reward_model model": """from transformers import AutoModelForSequenceClassification, {tokenizer}

model = AutoModelForSequenceClassification.from_pretrained("model")""",
    "reward_model adapter": """from peft import AutoPeftModelForSequenceClassification
from transformers import {tokenizer}

model = AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=1)""",
}

_CARD = """---
library_name: {library}
pipeline_tag: {task}
tags: [alignlab, {method}]
---

# {name}

| | |
|---|---|
| base | {base} |
| method | {method} |
| data | {data} |
{training}{results}
## Loading

```python
{load}
tokenizer = {tokenizer}.from_pretrained("{folder}")
```
{scale}"""
_SCALE = "\n`alignlab_reward.json` holds the scale: reward = gain * score + bias.\n"


def model_card(
    *,
    name: str,
    produces: str,
    base: str,
    method: str,
    data: str,
    metrics: Mapping[str, float],
    adapter: bool = False,
    command: str = "",
    tokenizer: str = "AutoTokenizer",
) -> str:
    """Markdown with a yaml head that model hubs read.

    `produces` is "policy" or "reward_model"; `metrics` are shown with four digits in the order given; `command` is
    what was typed to train it; `tokenizer` the class that loads it (see `tokenizers.loading_class`).
    """
    folder = "adapter" if adapter else "model"
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in metrics.items())
    return _CARD.format(
        library="peft" if adapter else "transformers",
        task="text-generation" if produces == "policy" else "text-classification",
        name=name,
        base=base,
        method=method,
        data=data,
        training=f"\n## Training\n\n```\n{command}\n```\n" if command else "",
        results=f"\n## Results\n\n| metric | value |\n|---|---|\n{rows}\n" if rows else "",
        load=_LOAD[f"{produces} {folder}"].format(tokenizer=tokenizer),
        tokenizer=tokenizer,
        folder=folder,
        scale=_SCALE if produces == "reward_model" else "",
    )
