"""Bugs in an optimizer step and in what is learnt from given data: shares, clipping, references, checkpoints."""

from tests.mutants.mutant import Mutant

METHODS = "methods/test_methods.py"
CUT = f"{METHODS}::test_one_batch_of_eight_equals_eight_of_one"
REFERENCE_CACHE = f"{METHODS}::test_cached_log_probs_are_of_the_starting_weights_and_never_stale"
RESUME = "methods/test_resume.py::test_a_killed_run_goes_on_to_the_same_bits"
TWO_PROCESSES = ("methods/test_two_processes.py",)
HELD_OUT = ("methods/test_held_out_figures.py",)
KTO = ("methods/test_kto.py::test_a_step_by_hand", "methods/test_kto.py")
SOFT = ("methods/test_soft_labels.py",)
OPTIMIZATION = ("methods/test_optimization.py",)
STEPS = ("methods/test_steps.py",)
IN_CHUNKS = ("methods/test_loss_in_chunks.py",)


MUTANTS = (
    # -- one optimizer step ------------------------------------------------------------------------------------------
    Mutant(
        "micro-batches weighted alike whatever they hold",
        "methods/base.py",
        "share, is_finite = own / total, True",
        "share, is_finite = torch.ones_like(own) / len(micro_batches), True",
        (f"{METHODS}::test_sft_divides_by_the_tokens_of_the_whole_step", CUT),
    ),
    Mutant(
        "each process divides by its own count",
        "methods/base.py",
        "total = self.sum_over_processes(local)",
        "total = local",
        TWO_PROCESSES,
    ),
    Mutant(
        "gradients averaged over processes although the losses are shares",
        "methods/base.py",
        "dist.all_reduce(parameter.grad)",
        "dist.all_reduce(parameter.grad)\n            parameter.grad /= dist.get_world_size()",
        TWO_PROCESSES,
    ),
    Mutant(
        "gradients of the step before kept",
        "methods/base.py",
        "optimizer.zero_grad(set_to_none=True)",
        "pass",
        (*STEPS, METHODS),
    ),
    Mutant(
        "gradient clipping off",
        "methods/base.py",
        'limit if limit is not None else float("inf")',
        'float("inf")',
        (*STEPS, METHODS),
    ),
    Mutant(
        "learning-rate schedule not followed",
        "methods/base.py",
        "lr = self.lr * lr_scale * self.optimizer.lr_factor(lr_step, self.total_steps)",
        "lr = self.lr * lr_scale",
        (*STEPS, METHODS),
    ),
    Mutant(
        "trained in eval mode: dropout never on",
        "methods/base.py",
        "module.train()",
        "module.eval()",
        (f"{METHODS}::test_dropout_is_on_in_training_where_it_was_asked_for",),
    ),
    # -- the loss inside the head ------------------------------------------------------------------------------------
    Mutant(
        "parts of a batch weighted alike whatever they hold",
        "methods/parts.py",
        "counts = torch.stack([count(part).double() for part in parts])",
        "counts = torch.ones(len(parts), dtype=torch.float64)",
        IN_CHUNKS,
    ),
    Mutant(
        "a batch with nothing to count is NaN",
        "methods/parts.py",
        "shares = counts / torch.where(counts.sum() > 0, counts.sum(), 1.0)",
        "shares = counts / counts.sum()",
        IN_CHUNKS,
    ),
    Mutant(
        "losses of the parts of a batch added up without their shares",
        "methods/parts.py",
        "return value * share.to(value.dtype), {",
        "return value, {",
        IN_CHUNKS,
    ),
    Mutant(
        "metrics of the parts of a batch added up without their shares",
        "methods/parts.py",
        "metric.double() * share for name",
        "metric.double() for name",
        IN_CHUNKS,
    ),
    Mutant(
        "chosen and rejected rows of a part exchanged in the head",
        "methods/parts.py",
        "pieces = [(batch.sequence_rows(units), part.sequences)",
        "pieces = [(batch.sequence_rows(units).view(-1, len(units)).flip(0).flatten(), part.sequences)",
        IN_CHUNKS,
    ),
    Mutant(
        "a loss that couples the pairs of a batch taken part by part",
        "methods/base.py",
        "if is_separable and self.loss_in_chunks",
        "if self.loss_in_chunks",
        IN_CHUNKS,
    ),
    # -- held-out figures, rates, checkpoints --------------------------------------------------------------------------
    Mutant(
        "held-out loss as a mean of batch means",
        "methods/sft.py",
        '"loss": -out.logprobs.sum(), "token_accuracy": out.greedy.sum(), "count": out.mask.sum()',
        '"loss": -out.logprobs.sum() / out.mask.sum(), "token_accuracy": out.greedy.sum() / out.mask.sum(), '
        '"count": torch.ones(())',
        HELD_OUT,
    ),
    Mutant(
        "weight decay on biases and norms",
        "methods/optimization.py",
        '"weight_decay": 0.0}',
        '"weight_decay": self.weight_decay}',
        OPTIMIZATION,
    ),
    Mutant(
        "warm-up that starts at a rate of zero",
        "methods/optimization.py",
        "return (step + 1) / (math.ceil(warmup_steps) + 1)",
        "return step / (math.ceil(warmup_steps) + 1)",
        OPTIMIZATION,
    ),
    Mutant(
        "gradients clipped before they are unscaled (fused AdamW under a loss scaler)",
        "methods/optimization.py",
        "fused = not loss_scaling and",
        "fused =",
        (*STEPS, *OPTIMIZATION),
    ),
    Mutant(
        "optimizer's state forgotten on resume",
        "methods/checkpoint.py",
        'optimizer.load_state_dict(self._state["optimizer"])',
        "pass",
        (f"{RESUME}[sft]",),
    ),
    Mutant(
        "random state forgotten on resume",
        "methods/checkpoint.py",
        'restore_random_state(self._state["random"][rank])',
        "pass",
        (f"{RESUME}[sft]",),
    ),
    Mutant(
        "KL coefficient forgotten on resume",
        "methods/checkpoint.py",
        'method.load_method_state(state["method"])',
        "pass",
        (f"{RESUME}[ppo]",),
    ),
    Mutant(
        "running baseline of a loss forgotten on resume",
        "methods/checkpoint.py",
        "for name in [*names, *kept]}",
        "for name in names}",
        ("methods/test_kto.py::test_a_running_baseline_is_resumed_too",),
    ),
    Mutant(
        "the worst checkpoint kept as the best",
        "methods/checkpoint.py",
        'value < self.best if self.mode == "min" else value > self.best',
        'value > self.best if self.mode == "min" else value < self.best',
        (*STEPS, "methods/test_resume.py"),
    ),
    # -- pairs -------------------------------------------------------------------------------------------------------
    Mutant(
        "log-probs averaged over tokens for DPO",
        "methods/dpo.py",
        "chosen, rejected = logprobs.sum(-1).chunk(2)",
        "chosen, rejected = (logprobs.sum(-1) / mask.sum(-1)).chunk(2)",
        (f"{METHODS}::test_log_probs_are_summed_not_averaged",),
    ),
    Mutant(
        "length counted with padding",
        "methods/dpo.py",
        "chosen_length, rejected_length = mask.sum(-1).chunk(2)",
        "chosen_length, rejected_length = (mask | True).sum(-1).chunk(2)",
        (f"{METHODS}::test_log_probs_are_summed_not_averaged",),
    ),
    Mutant(
        "weights of pairs not handed to the loss",
        "methods/dpo.py",
        "return loss(policy, reference, preference=batch.preference, weight=batch.weight)",
        "return loss(policy, reference, preference=batch.preference)",
        SOFT,
    ),
    Mutant(
        "cached reference sums of chosen and rejected exchanged",
        "methods/dpo.py",
        "self.cache.lookup(split, batch.rows).flatten()",
        "self.cache.lookup(split, batch.rows).flip(0).flatten()",
        (f"{METHODS}::test_the_three_references_agree",),
    ),
    Mutant(
        "stale reference: cached sums of other starting weights",
        "methods/reference_cache.py",
        'text = f"{weights}:{data.digest(split)}',
        'text = f"{data.digest(split)}',
        (REFERENCE_CACHE,),
    ),
    Mutant(
        "dropout on while reference sums are cached",
        "methods/reference_cache.py",
        "        self._policy.eval()\n",
        "        self._policy.train()\n",
        (*STEPS, METHODS),
    ),
    Mutant(
        "KTO's KL estimate with the wrong sign",
        "methods/kto.py",
        "torch.stack([self.policy(sequences).logprobs.sum(-1), self.reference(sequences).sum(-1)])",
        "torch.stack([self.reference(sequences).sum(-1), self.policy(sequences).logprobs.sum(-1)])",
        KTO,
    ),
    Mutant(
        "KTO's KL estimate of the first micro-batch alone",
        "methods/kto.py",
        "_over_processes(torch.cat(mismatched, dim=1))",
        "_over_processes(mismatched[0])",
        KTO,
    ),
    Mutant(
        "KTO's KL estimate of each micro-batch by itself",
        "methods/kto.py",
        "lambda micro: [self._loss_of(micro, kl)]",
        "self.terms",
        KTO,
    ),
    Mutant(
        "reward scale set on chosen replies alone",
        "methods/reward.py",
        "scores.append(self.reward_model(self._on_device(batch)).double().cpu())",
        "scores.append(self.reward_model(self._on_device(batch)).double().cpu().chunk(2)[0])",
        (f"{METHODS}::test_the_reward_scale_is_fixed_after_training",),
    ),
    Mutant(
        "calibration on held-out pairs by signed margins",
        "methods/reward.py",
        "confidence = torch.sigmoid(margin.abs())",
        "confidence = torch.sigmoid(margin).clamp(min=0.5)",
        HELD_OUT,
    ),
)
