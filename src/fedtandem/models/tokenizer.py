"""Text in, token ids and the bytes they stand at out: one tokenizer, whatever its family."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from fedtandem.alignment.card import ROLES, VocabularyCard
from fedtandem.errors import DataError, ModelError, UnknownTokenId
from fedtandem.models.chat import template_around, template_pieces
from fedtandem.models.encoded import Encoded, Piece, lay_out
from fedtandem.models.spelling import Spelling, read_spelling, without_dummy_prefix, without_marks
from fedtandem.models.token_ends import Ends, encodable, offset_ends, token_ends

Ids = npt.NDArray[np.int32]


class TextTokenizer:
    """A fast tokenizer of transformers, with what co-tuning needs to know of it.

    Args:
        hf_tokenizer: a `PreTrainedTokenizerFast`.
        model_vocab_size: rows of the model's embedding, if there is a model; None skips the check.

    Attributes:
        hf: the tokenizer it wraps.
        vocab_size: the real vocabulary: highest id plus one. Wider logit rows are cut to it.
        eos_id: closes every answer.
        bos_id: the token the tokenizer itself puts before a text; None unless it does.
        pad_id: fills rows of a batch; the EOS where the tokenizer has none. Never a label.

    Raises:
        ModelError: the tokenizer is not a fast one, has no EOS, or is larger than the model's embedding.
    """

    def __init__(self, hf_tokenizer: Any, model_vocab_size: int | None = None) -> None:
        backend = getattr(hf_tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(hf_tokenizer).__name__} is not a fast tokenizer; save it with a tokenizer.json "
                "(transformers converts most families) and load that."
            )
        self.hf = hf_tokenizer
        self.spelling: Spelling = read_spelling(backend, frozenset(hf_tokenizer.all_special_ids))
        self.vocab_size = len(self.spelling.tokens)
        if model_vocab_size is not None and model_vocab_size < self.vocab_size:
            raise ModelError(
                f"the tokenizer's ids end at {self.vocab_size - 1}, but the model's embedding has only "
                f"{model_vocab_size} rows. Load the model with its own tokenizer, or resize its embedding."
            )
        before, after = _frame(hf_tokenizer)
        self.bos_id: int | None = before[0] if before else None
        eos = hf_tokenizer.eos_token_id
        if eos is None and after:
            eos = after[-1]
        if eos is None:
            raise ModelError(
                f"the tokenizer ({self.vocab_size} ids) has no EOS token: answers could not be closed. "
                'Name one in its tokenizer_config.json ("eos_token").'
            )
        self.eos_id = int(eos)
        pad = hf_tokenizer.pad_token_id
        self.pad_id = self.eos_id if pad is None else int(pad)

    @staticmethod
    def from_pretrained(folder_or_name: str | Path, revision: str | None = None) -> "TextTokenizer":
        """Load the tokenizer of a folder or a model name.

        Raises:
            ModelError: there is none, or transformers cannot read it.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # AutoTokenizer of version 5 goes by the model: a Qwen2 would cut texts as Qwen2 does, whatever the files say.
        loader: Any = PreTrainedTokenizerFast if _is_plain(Path(folder_or_name)) else AutoTokenizer
        try:
            hf_tokenizer = loader.from_pretrained(str(folder_or_name), revision=revision, use_fast=True)
        except Exception as error:  # transformers raises many kinds; all mean the same to the user
            raise ModelError(
                f"no tokenizer could be loaded from {str(folder_or_name)!r}: {error}. Give a folder that holds "
                "tokenizer.json, or a model name."
            ) from error
        return TextTokenizer(hf_tokenizer)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`, so that transformers 4 loads them too."""
        self.hf.save_pretrained(str(folder))
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text("utf-8"))
        if settings.get("tokenizer_class") == "TokenizersBackend":  # version 5's name for what 4 knows as:
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")

    @cached_property
    def card(self) -> VocabularyCard:
        """What other parties learn of this vocabulary."""
        spelling, vocabulary = self.spelling, self.spelling.tokens
        ids: Mapping[str, int | None] = {
            "eos": self.eos_id,
            "bos": self.hf.bos_token_id if self.bos_id is None else self.bos_id,
            "unk": self.hf.unk_token_id,
            "pad": self.hf.pad_token_id,
        }
        roles = {role: int(ids[role]) for role in ROLES if ids[role] is not None}  # type: ignore[arg-type]
        special = spelling.special | frozenset(roles.values())
        return VocabularyCard(
            tokens=vocabulary,
            token_bytes=tuple(
                None if i in special or not token else spelling.surface[i]
                for i, token in enumerate(vocabulary)
            ),
            roles=roles,
            special=special,
            marker=spelling.marker,
        )

    # -- text to ids -------------------------------------------------------------------------------------------

    def encode_many(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        max_length: int = 512,
        chat_template: bool = False,
        positions: Literal["answer", "all"] | str = "answer",
        eos: bool | Sequence[bool] = True,
    ) -> list[Encoded]:
        """Encode samples.

        Args:
            pairs: (prompt, answer); the separating space belongs to the answer. A literal special string in
                either is text.
            max_length: tokens per sample at most; what does not fit is cut off at the end.
            chat_template: wrap the prompt in the tokenizer's own chat template.
            positions: "answer": rows for answer tokens and the EOS; "all": for prompt tokens as well.
            eos: close the answer with EOS; False for windows of running text. One value, or one per sample.

        Returns:
            One `Encoded` per pair, in order.

        Raises:
            DataError: an answer is empty.
            ModelError: `chat_template` is set and the tokenizer has none.
            ValueError: `positions` is neither word.
        """
        if positions not in ("answer", "all"):
            raise ValueError(f"positions is {positions!r}; expected 'answer' or 'all'")
        for i, (prompt, answer) in enumerate(pairs):
            if not answer:
                raise DataError(
                    f"sample {i} (prompt {prompt[:40]!r}) has an empty answer: there is nothing to score or teach. "
                    "Remove the row, or leave the answer out of every row for an unlabelled set."
                )
        closes = [eos] * len(pairs) if isinstance(eos, bool) else list(eos)
        parts = self._pieces_in_template(pairs) if chat_template else self._pieces(pairs)
        return [
            lay_out(
                before,
                prompt,
                between,
                answer,
                self.eos_id if close else None,
                max_length,
                positions == "all",
            )
            for (before, prompt, between, answer), close in zip(parts, closes, strict=True)
        ]

    def encode(
        self,
        prompt: str,
        answer: str,
        *,
        max_length: int = 512,
        chat_template: bool = False,
        positions: Literal["answer", "all"] | str = "answer",
        eos: bool = True,
    ) -> Encoded:
        """`encode_many` for one sample."""
        return self.encode_many(
            [(prompt, answer)],
            max_length=max_length,
            chat_template=chat_template,
            positions=positions,
            eos=eos,
        )[0]

    def encode_prompt(self, prompt: str, *, chat_template: bool = False) -> Ids:
        """A prompt as the beginning of a generation: BOS or template included; (T,) int32, never empty."""
        if chat_template:
            before, after = self._template_ids
            (piece,) = self._continued([prompt])
            return np.concatenate([before, piece.ids, after]).astype(np.int32)
        (piece,) = self._whole([prompt]) if prompt else (Piece.empty(),)
        return np.concatenate([self._first_context(bool(piece.ids.size)), piece.ids]).astype(np.int32)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be written as this tokenizer's model was taught them."""
        return bool(getattr(self.hf, "chat_template", None))

    def encode_messages(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """A conversation of (role, content) in the chat template, as the beginning of an answer; (T,) int32.

        Special strings in a content are text; the template's own are tokens.

        Raises:
            ModelError: as `models.chat.template_pieces`.
        """
        first, *pieces = template_pieces(self.hf, [role for role, _ in messages])
        parts = [np.array(self.spelling.encode([first], marks_are_text=False)[0].ids, np.int32)]
        for (_, content), piece in zip(messages, pieces, strict=True):
            after = self._inside.encode([piece], marks_are_text=False)[0].ids if piece else []
            parts += [self.continue_ids(content), np.array(after, np.int32)]
        return np.concatenate(parts)

    def continue_ids(self, text: str) -> Ids:
        """Ids of text that follows other tokens: no BOS, no dummy space in front; (T,) int32, may be empty."""
        (encoding,) = self._text_encodings(self._inside, [text])
        return np.array(encoding.ids, np.int32)

    def first_pieces(self, texts: Sequence[str]) -> list[int]:
        """Id of the first token of each text, read as continuing other text; -1 where there is none."""
        encodings = self._text_encodings(self._inside, list(texts))
        return [encoding.ids[0] if encoding.ids else -1 for encoding in encodings]

    def decode_answer(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text that generated ids spell, up to the EOS; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UnknownTokenId: an id outside the vocabulary.
        """
        spelled = []
        for token_id in map(int, ids):
            if token_id == self.eos_id:
                break
            if not 0 <= token_id < self.vocab_size:
                raise UnknownTokenId(
                    f"token id {token_id} was generated, but the vocabulary ends at {self.vocab_size - 1}: "
                    "cut the logits to the tokenizer's vocabulary before choosing a token."
                )
            spelled.append(self.card.token_bytes[token_id] or b"")
        return b"".join(spelled).decode("utf-8", "replace")

    def token_ends(self, text: str, ids: Sequence[int] | Ids) -> Ends:
        """Bytes of `text` spelled by ids[0..i]; (T,) int32; -1 where that cannot be said.

        The ids are those of the whole text, with literal special strings as tokens or as text.
        """
        ways: list[Callable[[str], Encoding]] = [
            partial(self._with_offsets, self.spelling),
            self.spelling.encode_with_marks,
        ]
        return token_ends(self.spelling, text, np.asarray(ids, np.int32), ways)

    # -- details -----------------------------------------------------------------------------------------------

    @cached_property
    def _inside(self) -> Spelling:
        """Reads text that continues other text: without the dummy space some tokenizers put first."""
        if not self.spelling.dummy_prefix:
            return self.spelling
        return read_spelling(without_dummy_prefix(self.spelling.tokenizer), self.spelling.special)

    @cached_property
    def _without_marks(self) -> Mapping[bool, Spelling]:
        """Both readers, made unable to produce a special token from text; built when first needed."""
        return {
            spelling is self.spelling: read_spelling(
                without_marks(spelling.tokenizer, spelling.special), spelling.special
            )
            for spelling in (self._inside, self.spelling)
        }

    def _text_encodings(self, spelling: Spelling, texts: list[str], offsets: bool = False) -> list[Encoding]:
        """Encodings in which every special string is text."""
        texts = [encodable(text) for text in texts]
        encodings = spelling.encode(texts, marks_are_text=True, offsets=offsets)
        marks = spelling.special - {self.hf.unk_token_id}
        if not marks:
            return encodings
        wrong = [i for i, encoding in enumerate(encodings) if not marks.isdisjoint(encoding.ids)]
        if wrong:  # the model itself holds the mark as a piece
            strict = self._without_marks[spelling is self.spelling]
            again = strict.encode([texts[i] for i in wrong], marks_are_text=True, offsets=offsets)
            for i, encoding in zip(wrong, again, strict=True):
                encodings[i] = encoding
        return encodings

    def _read(self, spelling: Spelling, texts: list[str]) -> list[Piece]:
        """Token ids and ends of texts."""
        encodings = self._text_encodings(spelling, texts, offsets=spelling.forms is None)
        pieces = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, np.int32)
            if spelling.forms is None:
                ends = offset_ends(spelling, text, encoding)
            else:
                ends = token_ends(spelling, text, ids, [partial(self._with_offsets, spelling)])
            pieces.append(Piece(ids, ends, len(text.encode("utf-8", "replace"))))
        return pieces

    def _with_offsets(self, spelling: Spelling, text: str) -> Encoding:
        return self._text_encodings(spelling, [text], offsets=True)[0]

    def _whole(self, texts: list[str]) -> list[Piece]:
        """Texts that begin a sequence."""
        return self._read(self.spelling, texts)

    def _continued(self, texts: list[str]) -> list[Piece]:
        """Texts that follow other tokens."""
        return self._read(self._inside, texts)

    def _first_context(self, has_prompt: bool) -> Ids:
        """What stands before the text: BOS if the tokenizer uses it; else EOS, but only before nothing."""
        if self.bos_id is not None:
            return np.array([self.bos_id], np.int32)
        return np.array([] if has_prompt else [self.eos_id], np.int32)

    def _pieces(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ids, Piece, Ids, Piece]]:
        """(BOS, prompt, nothing, answer) of each pair; apart where the prompt's end is no token boundary."""
        nothing = np.empty(0, np.int32)
        joint = self._whole([prompt + answer for prompt, answer in pairs])
        parts: list[tuple[Ids, Piece, Ids, Piece] | None] = []
        for (prompt, _), piece in zip(pairs, joint, strict=True):
            cut = piece.cut_at(len(prompt.encode("utf-8", "replace")))
            if cut is None:
                parts.append(None)
                continue
            parts.append((self._first_context(cut[0].ids.size > 0), cut[0], nothing, cut[1]))
        apart = [i for i, part in enumerate(parts) if part is None]
        prompts = self._whole([pairs[i][0] for i in apart])
        answers = self._continued([pairs[i][1] for i in apart])
        for i, prompt_piece, answer_piece in zip(apart, prompts, answers, strict=True):
            parts[i] = (self._first_context(prompt_piece.ids.size > 0), prompt_piece, nothing, answer_piece)
        return [part for part in parts if part is not None]

    def _pieces_in_template(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ids, Piece, Ids, Piece]]:
        """(template, prompt, template, answer) of each pair."""
        before, after = self._template_ids
        prompts = self._continued([prompt for prompt, _ in pairs])
        answers = self._continued([answer for _, answer in pairs])
        return [(before, prompt, after, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    @cached_property
    def _template_ids(self) -> tuple[Ids, Ids]:
        """Ids of the chat template before and after the prompt; its special tokens are tokens."""
        before, after = template_around(self.hf)
        opening, closing = self.spelling, self._inside
        first = opening.encode([before], marks_are_text=False)[0].ids
        second = closing.encode([after], marks_are_text=False)[0].ids
        return np.array(first, np.int32), np.array(second, np.int32)


def _frame(hf_tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids the tokenizer puts before and after a text of its own accord."""
    backend = hf_tokenizer.backend_tokenizer
    bare = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            before, after = framed[:start], framed[start + len(bare) :]
            break
    else:
        before, after = [], []
    if not before and getattr(hf_tokenizer, "add_bos_token", False) and hf_tokenizer.bos_token_id is not None:
        before = [hf_tokenizer.bos_token_id]
    return before, after


def _is_plain(folder: Path) -> bool:
    """Whether this folder's tokenizer is nothing but its tokenizer.json."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("tokenizer_class") == "PreTrainedTokenizerFast"
