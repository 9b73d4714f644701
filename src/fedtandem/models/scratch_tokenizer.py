"""Three kinds of tokenizer that can be trained in seconds and can write any text."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from fedtandem.errors import ModelError
from fedtandem.models.tokenizer import TextTokenizer

TokenizerKind = Literal["bytes", "bpe", "pieces"]
SPECIALS = ("<pad>", "<s>", "</s>")


def train_tokenizer(
    kind: TokenizerKind, texts: Sequence[str], vocab_size: int, *, bos: bool = False
) -> TextTokenizer:
    """Train a tokenizer.

    Args:
        kind: "bytes": every byte is a token, as in ByT5 (`vocab_size` is not used). "bpe": byte-level BPE that
            cuts before each word's space, as GPT-2's. "pieces": SentencePiece-like BPE with "▁" for a space, bytes
            for other characters, and each digit alone, without its space.
        texts: what merges are learnt from.
        vocab_size: at most so many entries, at least 259 (three specials and all bytes).
        bos: texts begin with <s>.

    Returns:
        A tokenizer that writes every string; specials <pad> 0, <s> 1, </s> 2.

    Raises:
        ModelError: an unknown kind, or a vocabulary that is too small.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if kind not in ("bytes", "bpe", "pieces"):
        raise ModelError(f"tokenizer kind {kind!r} is unknown; use bytes, bpe or pieces.")
    smallest = len(SPECIALS) + 256
    if kind != "bytes" and vocab_size < smallest:
        raise ModelError(
            f"vocab_size = {vocab_size} is too small: three specials and all bytes need {smallest}."
        )
    tokenizer = _pieces(texts, vocab_size) if kind == "pieces" else _byte_level(kind, texts, vocab_size)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        **({"bos_token": "<s>"} if bos else {}),
    )
    return TextTokenizer(fast)


def _byte_level(kind: TokenizerKind, texts: Sequence[str], vocab_size: int) -> Any:
    """Byte-level BPE; of kind "bytes", without a single merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "bytes":
        vocab = {token: i for i, token in enumerate((*SPECIALS, *alphabet))}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.add_special_tokens(list(SPECIALS))
    else:
        tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _pieces(texts: Sequence[str], vocab_size: int) -> Any:
    """BPE over characters with "▁" for a space and <0x00>..<0xFF> for characters outside the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, trainers

    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _words_and_digits()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size - len(byte_tokens), len(SPECIALS)),
        special_tokens=list(SPECIALS),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = learner.get_vocab()
    # Specials, then bytes, then what was learnt: the order of SentencePiece models.
    ordinary = sorted((token for token in learned if token not in SPECIALS), key=lambda token: learned[token])
    vocab = {token: i for i, token in enumerate((*SPECIALS, *byte_tokens, *ordinary))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_merges(learner), byte_fallback=True))
    tokenizer.pre_tokenizer = _words_and_digits()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _words_and_digits() -> Any:
    """Cuts before each space, then around each digit."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    """The merges of a trained BPE, in order."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in merges]
