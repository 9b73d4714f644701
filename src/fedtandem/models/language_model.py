"""A language model with its tokenizer: logits where they are needed, greedy text, weights in and out."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtandem.errors import ModelError
from fedtandem.models.adapters import read_state, restore_folder, save_folder, write_state
from fedtandem.models.cached_rows import CachedRows
from fedtandem.models.encoded import Encoded
from fedtandem.models.generation import chooser, greedy
from fedtandem.models.session_reader import SessionReader
from fedtandem.models.tokenizer import TextTokenizer

PaddingSide = Literal["left", "right"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Batch:
    """B texts padded to T tokens, and the P places whose logits are wanted.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: 1 for a token, 0 for padding; (B, T) int64.
        row, col: text and column of each predictor position, text by text; (P,) int64.
        targets: the token each position has to predict; (P,) int64.
        splits: positions of text b are splits[b]:splits[b + 1]; (B + 1,) int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    col: Tensor
    targets: Tensor
    splits: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def collate(encoded: Sequence[Encoded], pad_id: int, padding_side: PaddingSide = "right") -> Batch:
    """Pad texts to the longest of them.

    Args:
        encoded: B >= 1 texts.
        pad_id: fills the padding; never a label, never attended to.
        padding_side: makes no difference to any logit.

    Raises:
        ValueError: no text.
    """
    if not encoded:
        raise ValueError("collate needs at least one text.")
    lengths = [len(text.input_ids) for text in encoded]
    longest = max(lengths)
    input_ids = np.full((len(encoded), longest), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(encoded), longest), dtype=np.int64)
    columns = []
    for b, text in enumerate(encoded):
        first = longest - lengths[b] if padding_side == "left" else 0
        input_ids[b, first : first + lengths[b]] = text.input_ids
        attention_mask[b, first : first + lengths[b]] = 1
        columns.append(text.positions.astype(np.int64) + first)
    counts = np.array([len(text.positions) for text in encoded], dtype=np.int64)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        row=torch.from_numpy(np.repeat(np.arange(len(encoded), dtype=np.int64), counts)),
        col=torch.from_numpy(np.concatenate(columns)),
        targets=torch.from_numpy(np.concatenate([text.targets for text in encoded]).astype(np.int64)),
        splits=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
    )


class LanguageModel:
    """A causal model of `transformers`, maybe with a PEFT adapter, on one device, with its own tokenizer.

    Attributes:
        model: PreTrainedModel or PeftModel; call .train() and .eval() on it.
        tokenizer: its tokenizer.
        name: free text for records, e.g. "embedded:chains-server".
        source: what `load_model` finds the base weights by: "embedded:NAME", a folder, a hub name; "" for a model
            that was just made.
        method: "lora" (the adapter alone is trained), "full", or "none" (nothing is).
        device: where inputs go.
        selects_hidden: logits are computed at the wanted positions only; else a full forward is cut afterwards.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: TextTokenizer,
        *,
        name: str,
        source: str = "",
        method: Literal["lora", "full", "none"] = "full",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self.method = method
        self.device: torch.device = model.get_input_embeddings().weight.device
        self._autocast_dtype = autocast_dtype
        self._causal = model.get_base_model() if hasattr(model, "peft_config") else model
        self._decoder = _decoder_of(self._causal)
        accepted = inspect.signature(self._causal.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps_last = "logits_to_keep" in accepted
        self.selects_hidden = self._decoder is not None
        if self.selects_hidden:
            self.selects_hidden = self._self_check()

    # --- logits -----------------------------------------------------------------------------------------------

    def logits_at(self, batch: Batch) -> Tensor:
        """Logits at the batch's predictor positions, cut to the tokenizer's real vocabulary; (P, V).

        The vocabulary-wide product is made for these positions only, where the architecture allows it (checked
        when the model was loaded against the full forward; models that scale or cap their logits fail that check
        and take the long way). Gradients flow when enabled; dropout follows `model.training`.

        Raises:
            ModelError: a text is longer than the model's context.
        """
        self._check_length(batch.input_ids.shape[1])
        batch = batch.to(self.device)
        with self._autocast():
            if self.selects_hidden:
                logits = self._selected_logits(batch)
            else:
                logits = self._full_logits(batch)[batch.row, batch.col]
        return logits[:, : self.tokenizer.vocab_size]

    def mean_hidden(self, token_ids: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        """The mean of the last hidden states over each text's tokens; (B, d) float32."""
        longest = max(len(ids) for ids in token_ids)
        self._check_length(longest)
        padded = torch.full((len(token_ids), longest), self.tokenizer.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(padded)
        for b, ids in enumerate(token_ids):
            padded[b, : len(ids)] = torch.from_numpy(np.asarray(ids, np.int64))
            mask[b, : len(ids)] = 1
        padded, mask = padded.to(self.device), mask.to(self.device)
        with self._autocast():
            if self._decoder is not None:
                last = self._decoder(
                    input_ids=padded, use_cache=False, **self._inputs(mask)
                ).last_hidden_state
            else:
                inputs = {**self._inputs(mask), "use_cache": False, "output_hidden_states": True}
                last = self.model(input_ids=padded, **inputs).hidden_states[-1]
        hidden: Tensor = last.float() * mask[:, :, None]
        return hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def embed(self, token_ids: Sequence[npt.NDArray[np.integer[Any]]]) -> npt.NDArray[np.float32]:
        """`mean_hidden` of texts of any lengths, a few at a time; (N, d) float32.

        Raises:
            ModelError: a text is longer than the model's context.
        """
        parts = [self.mean_hidden([np.asarray(ids, np.int32)]) for ids in token_ids]
        return torch.cat(parts).cpu().numpy()

    def _check_length(self, n_tokens: int) -> None:
        limit = getattr(self._causal.config, "max_position_embeddings", None)
        if limit is not None and n_tokens > int(limit):
            raise ModelError(
                f"{self.name}: a text has {n_tokens} tokens, the model's context holds {limit}; set max_length to "
                f"at most {limit}."
            )

    def _inputs(self, attention_mask: Tensor) -> dict[str, Tensor]:
        """Mask and positions: padding on either side leaves every real token its place in the text."""
        inputs = {"attention_mask": attention_mask}
        if self._takes_positions:
            inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
        return inputs

    def _selected_logits(self, batch: Batch) -> Tensor:
        assert self._decoder is not None
        output = self._decoder(
            input_ids=batch.input_ids, use_cache=False, **self._inputs(batch.attention_mask)
        )
        hidden = output.last_hidden_state[batch.row, batch.col]  # (P, d)
        logits: Tensor = self._causal.get_output_embeddings()(hidden)
        return logits

    def _full_logits(self, batch: Batch) -> Tensor:
        inputs = self._inputs(batch.attention_mask)
        logits: Tensor = self.model(input_ids=batch.input_ids, use_cache=False, **inputs).logits
        return logits

    @torch.no_grad()
    def _self_check(self) -> bool:
        """Whether head(selected hidden states) is the full forward's logits, on a small padded batch."""
        was_training = self.model.training
        self.model.eval()
        try:
            ids = torch.arange(10).reshape(2, 5) % max(1, self.tokenizer.vocab_size)
            mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
            row, col = torch.tensor([0, 0, 1]), torch.tensor([1, 4, 2])
            batch = Batch(ids, mask, row, col, ids[row, col], torch.tensor([0, 2, 3])).to(self.device)
            with self._autocast():
                ours = self._selected_logits(batch).float()
                full = self._full_logits(batch)[batch.row, batch.col].float()
            if ours.shape != full.shape:
                return False
            exact = full.dtype == torch.float32 and self._causal.dtype == torch.float32
            tolerance = 1e-4 if exact and self._autocast_dtype is None else 2e-2
            return bool((ours - full).abs().max() <= tolerance * max(1.0, float(full.abs().max())))
        except (AttributeError, TypeError, RuntimeError):
            return False  # an unusual architecture: the full forward is always right
        finally:
            self.model.train(was_training)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self._autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    # --- text -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[npt.NDArray[np.int32]],
        *,
        max_new_tokens: int,
        batch_size: int = 64,
        on_progress: Progress | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[npt.NDArray[np.int32]]:
        """Continuations, one per prompt and in its order; greedy unless a temperature is given.

        Args:
            prompts: token ids with BOS and template, as `TextTokenizer.encode_prompt` gives them.
            max_new_tokens: length limit of each continuation.
            on_progress: called with (prompts done, all prompts).
            temperature: 0 takes the most likely token, above 0 draws one.
            seed: of the draws.

        Returns:
            The new ids of each prompt, closing EOS included where one was written; int32. Deterministic; which
            prompts share a batch changes sums in their last bits only. Ties go to the lower id.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with self._autocast():
                return greedy(
                    self._causal if self.selects_hidden else self.model,
                    prompts,
                    inputs=self._inputs,
                    vocab_size=self.tokenizer.vocab_size,
                    eos_id=self.tokenizer.eos_id,
                    pad_id=self.tokenizer.pad_id,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    device=self.device,
                    on_progress=on_progress,
                    choose=chooser(temperature, seed),
                )
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def hidden_states(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The last hidden state of every token of B texts, given as ids; (T, D) float32 each, on the CPU.

        Raises:
            ModelError: a text is longer than the model's context.
        """
        longest = max(len(text) for text in texts)
        self._check_length(longest)
        ids = torch.full((len(texts), longest), self.tokenizer.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for b, text in enumerate(texts):
            ids[b, : len(text)] = torch.tensor([int(token) for token in text])
            mask[b, : len(text)] = 1
        with self._autocast():
            output = self.model(
                input_ids=ids.to(self.device), use_cache=False, output_hidden_states=True,
                **self._inputs(mask.to(self.device)),
            )  # fmt: skip
        last = output.hidden_states[-1].float().cpu()
        return [last[b, : len(text)] for b, text in enumerate(texts)]

    def cached_rows(self, n_rows: int) -> CachedRows:
        """This model reading `n_rows` growing texts, with keys and values kept; puts it in evaluation mode."""
        self.model.eval()
        return CachedRows(self._forward, n_rows, **self._reading())

    def session_reader(self, cache_bytes: int) -> SessionReader:
        """This model reading texts that come and go, with at most so many bytes of keys and values kept."""
        self.model.eval()
        return SessionReader(self._forward, cache_bytes=cache_bytes, **self._reading())

    def _reading(self) -> dict[str, Any]:
        limit = getattr(self._causal.config, "max_position_embeddings", None)
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "pad_id": self.tokenizer.pad_id,
            "limit": None if limit is None else int(limit),
            # Without positions as an input a model counts columns, masked ones included.
            "can_cache": self._takes_positions,
            "name": self.name,
        }

    def _forward(
        self, step_ids: Tensor, attention_mask: Tensor, cache: Any, n_last: int
    ) -> tuple[Tensor, Any]:
        """New columns behind a cache; see `cached_rows.Forward`."""
        model = self._causal if self.selects_hidden else self.model
        inputs: dict[str, Any] = dict(self._inputs(attention_mask.to(self.device)))
        width = step_ids.shape[1]
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][:, -width:]
        if self._keeps_last:
            inputs["logits_to_keep"] = n_last
        with self._autocast():
            output = model(
                input_ids=step_ids.to(self.device),
                past_key_values=cache,
                use_cache=self._takes_positions,
                **inputs,
            )
        return output.logits[:, -n_last:], output.past_key_values if self._takes_positions else None

    # --- weights ----------------------------------------------------------------------------------------------

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """The weights that tuning changes, in a fixed order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def n_parameters(self) -> tuple[int, int]:
        """All weights, and those that are trained."""
        every = sum(parameter.numel() for parameter in self.model.parameters())
        return every, sum(parameter.numel() for parameter in self.trainable_parameters())

    def state(self) -> dict[str, Tensor]:
        """What tuning changes: the adapter, or all weights (each once); copies on the CPU, by name."""
        return read_state(self.model)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state()` back.

        Raises:
            ModelError: names or shapes are not this model's; says which.
        """
        write_state(self.model, state, where=self.name)

    def save(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, or all weights as a `transformers` folder; tokenizer beside them.

        Stock `PeftModel.from_pretrained` / `AutoModelForCausalLM.from_pretrained` load it. `fedtandem.json` holds
        the vocabulary's hash. The folder appears whole or not at all.

        Raises:
            DiskFull: nothing half-written is left.
        """
        save_folder(self.model, self.tokenizer, folder, base=self.source, method=self.method)

    def restore(self, folder: Path) -> None:
        """Load what `save` wrote into this model.

        Raises:
            ModelError: nothing there, or other names and shapes.
            VocabularyMismatch: it was made with another tokenizer.
        """
        restore_folder(self.model, self.tokenizer, folder, name=self.name)


def _decoder_of(causal: Any) -> Any | None:
    """The part of a causal model that ends in hidden states, or None where there is no such part."""
    try:
        decoder = causal.get_decoder()
    except (AttributeError, NotImplementedError, ValueError):
        decoder = None
    if decoder is None or decoder is causal:
        decoder = getattr(causal, "base_model", None)
    if decoder is None or decoder is causal or causal.get_output_embeddings() is None:
        return None
    return decoder
