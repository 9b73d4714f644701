"""Every sample's own gradient, clipped to a norm, summed: what DP-SGD adds noise to."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedtandem.distillation.kd import IGNORE_INDEX
from fedtandem.errors import ModelError
from fedtandem.tuning.batches import Example, to_part

PROBE = 2
"""Samples on which opacus' hooks must agree with one sample at a time before they are used."""


class PerSample:
    """Per-sample gradients of the mean cross-entropy on a sample's own labels.

    opacus' hooks give those of a whole batch in one backward pass. They are right only where every trained layer is
    linear and sees one row per sample, so they are tried on the phase's first samples: where they disagree with
    the plain way (one sample at a time), that is taken. An adapter on linear layers passes; tied weights, GPT-2's
    Conv1D tuned whole and gradient checkpointing do not.

    Args:
        lm: a `phase.Tunable`; its parameters that require a gradient count.
        examples: of the phase; the first of them are the probe.
    """

    def __init__(self, lm: Any, examples: Sequence[Example]) -> None:
        self.lm = lm
        self.parameters: list[nn.Parameter] = [p for p in lm.model.parameters() if p.requires_grad]
        self.uses_hooks = self._hooks_agree([e for e in examples if e.counts.labels][:PROBE])

    def clipped_sum(self, batch: Sequence[Example], max_grad_norm: float) -> tuple[list[Tensor], float, int]:
        """Σ over the batch of each sample's gradient, scaled down to `max_grad_norm` where it is longer.

        Args:
            batch: what goes through the model at once; a sample without labels adds nothing.
            max_grad_norm: C; `math.inf` clips nothing.

        Returns:
            One tensor per parameter, float32; Σ of the samples' negative log-likelihoods in nats; labels behind it.

        Source: Abadi et al., arXiv:1607.00133, algorithm 1 (per-layer sums, one norm over all parameters).
        """
        batch = [example for example in batch if example.counts.labels]
        total = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        nll, n_labels = 0.0, 0
        for chunk in [batch] if self.uses_hooks else [[example] for example in batch]:
            if not chunk:
                continue
            gradients, chunk_nll, chunk_labels = self._gradients(chunk)
            nll, n_labels = nll + chunk_nll, n_labels + chunk_labels
            squares = sum(g.flatten(1).float().square().sum(dim=1) for g in gradients)
            norms = torch.as_tensor(squares).sqrt()  # (B,)
            factor = (max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
            for at, gradient in zip(total, gradients, strict=True):
                at += torch.einsum("b,b...->...", factor, gradient.float())
        return total, nll, n_labels

    def _gradients(self, batch: Sequence[Example]) -> tuple[list[Tensor], float, int]:
        """(B, ...) of every parameter; B = 1 without hooks."""
        if not self.uses_hooks:
            nll, n_labels = self._backward(batch)
            return [_taken(p, "grad")[None] for p in self.parameters], nll, n_labels
        with self._hooks():
            nll, n_labels = self._backward(batch)
            gradients = [_taken(p, "grad_sample") for p in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None
        wrong = [g for g in gradients if g.shape[0] != len(batch)]
        if wrong:
            raise ModelError(
                f"a trained layer gave {wrong[0].shape[0]} gradients for {len(batch)} samples: it mixes samples, and "
                "no bound holds for one of them. Train other layers (tuning.peft.target_modules)."
            )
        return gradients, nll, n_labels

    def _backward(self, batch: Sequence[Example]) -> tuple[float, int]:
        part = to_part(batch, pad_id=self.lm.tokenizer.pad_id, device=self.lm.device, distils=False)
        nll = F.cross_entropy(
            self.lm.logits_at(part.inputs).float(), part.labels, ignore_index=IGNORE_INDEX, reduction="none"
        )  # (P,)
        row = part.inputs.row.to(nll.device)
        n_labels = torch.bincount(row[part.labels != IGNORE_INDEX], minlength=len(batch))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # of frozen embeddings
            (nll / n_labels.clamp_min(1)[row]).sum().backward()  # type: ignore[no-untyped-call]
        return float(nll.detach().sum()), int(n_labels.sum())

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        try:
            from opacus.grad_sample.grad_sample_module import GradSampleHooks
        except ImportError as error:
            raise ModelError("per-sample hooks need opacus: pip install 'fedtandem[dp]'.") from error
        hooks = GradSampleHooks(self.lm.model, batch_first=True, loss_reduction="sum", strict=False)
        before = [(module, module.training) for module, _ in self._owners()]
        for module, _ in before:
            module.train()  # opacus looks at nothing else; to a linear layer it means nothing
        try:
            yield
        finally:
            hooks.remove_hooks()
            for module, was_training in before:
                module.train(was_training)
            for parameter in self.parameters:
                if hasattr(parameter, "grad_sample"):
                    del parameter.grad_sample

    def _hooks_agree(self, probe: Sequence[Example]) -> bool:
        recomputes = any(getattr(m, "gradient_checkpointing", False) for m in self.lm.model.modules())
        if not probe or recomputes or not self._are_linear():
            return False
        was_training = self.lm.model.training
        self.lm.model.eval()  # dropout would differ
        try:
            self.uses_hooks = False
            alone = [self._gradients([example])[0] for example in probe]
            self.uses_hooks = True
            together = self._gradients(probe)[0]
        except (ModelError, NotImplementedError, RuntimeError, ValueError, AttributeError):
            return False
        finally:
            self.lm.model.train(was_training)
            for parameter in self.parameters:
                parameter.grad = None
        return all(
            torch.allclose(torch.cat([one[j] for one in alone]), both, rtol=1e-3, atol=1e-5)
            for j, both in enumerate(together)
        )

    def _are_linear(self) -> bool:
        """Whether all that is trained are weights of linear layers, each used in one place."""
        owners = self._owners()
        return len(owners) == len(self.parameters) and all(type(m) is nn.Linear for m, _ in owners)

    def _owners(self) -> list[tuple[nn.Module, nn.Parameter]]:
        return [
            (module, parameter)
            for module in self.lm.model.modules()
            for parameter in module.parameters(recurse=False)
            if parameter.requires_grad
        ]


def _taken(parameter: nn.Parameter, name: str) -> Tensor:
    """A gradient moved out of its parameter; 0 where the loss does not reach it."""
    value = getattr(parameter, name, None)
    setattr(parameter, name, None)
    if value is None:
        shape = parameter.shape if name == "grad" else (0, *parameter.shape)
        return torch.zeros(shape, device=parameter.device)
    return value.detach()  # type: ignore[no-any-return]
