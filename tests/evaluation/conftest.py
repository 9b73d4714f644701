"""A tiny random Llama with a tokenizer of its own: byte-level BPE over a few words."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedtandem.models.language_model import LanguageModel
from fedtandem.models.tokenizer import TextTokenizer

WORDS = ["the cat sat on the mat and the dog ran to the cat", "yes no maybe seven eleven"]


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """Byte-level BPE, 280 ids, with BOS-less texts and an EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=280, special_tokens=["</s>"], initial_alphabet=alphabet)
    )
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>"))


@pytest.fixture(scope="session")
def lm(tokenizer: TextTokenizer) -> LanguageModel:
    """Random weights, wide enough apart that hardly any two tokens are nearly equally likely."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size + 8,  # a padded head
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=600,
        initializer_range=0.5,
        bos_token_id=tokenizer.eos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
    )
    return LanguageModel(LlamaForCausalLM(config), tokenizer, name="tiny", method="none")
