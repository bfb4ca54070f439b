"""What is reported beside the loss: detached scalars under the same names at every step."""

from collections.abc import Iterator

import torch
from torch import Tensor

from alignlab.contracts.finding import Finding
from alignlab.contracts.subjects import Rows, Subject, as_dtype


def metrics(subject: Subject) -> Iterator[Finding]:
    """Metrics are detached scalars under the same names at every step."""
    loss = subject.fresh()  # one copy for all: keys may not depend on how often it was called
    batches = [subject.draw(6), *subject.unusual(), subject.draw(3, seed=6)]
    found = [subject.call(loss, _watched(subject, rows)) for rows in batches]
    attached = {name for out in found for name, x in out.metrics.items() if isinstance(x, Tensor) and x.requires_grad}
    odd = {name for out in found for name, x in out.metrics.items() if not (isinstance(x, Tensor) and x.ndim == 0)}
    yield Finding(
        f"metrics that hold on to the graph{_listed(attached)}",
        float(len(attached)),
        0.0,
        "a metric without detach(): every logged step would keep its whole graph in memory",
    )
    yield Finding(
        f"metrics that are not scalar tensors{_listed(odd)}",
        float(len(odd)),
        0.0,
        "a Python number (item() waits for the GPU) or a vector where a mean belongs",
    )
    keys = [set(out.metrics) for out in found]
    changing = set.union(*keys) - set.intersection(*keys)
    yield Finding(
        f"names that are there at some steps only{_listed(changing)}",
        float(len(changing)),
        0.0,
        "a metric is added under an if; report 0 instead, so that means over micro-batches and processes exist",
    )
    unfit = sum(not (out.loss.ndim == 0 and out.loss.requires_grad) for out in found)
    yield Finding(
        f"losses that are not scalars with a gradient, of {len(found)}",
        float(unfit),
        0.0,
        "the loss of each row is returned instead of their mean, or it was detached",
    )


def _watched(subject: Subject, rows: Rows) -> Rows:
    rows = as_dtype(rows, torch.float32)
    return {name: x.clone().requires_grad_() if name in subject.differentiable else x for name, x in rows.items()}


def _listed(names: set[str]) -> str:
    return f" ({', '.join(sorted(names))})" if names else ""
