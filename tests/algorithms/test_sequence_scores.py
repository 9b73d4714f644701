"""Joint log-probabilities of whole paths, and the summary of hidden states."""

import numpy as np
import torch

from fedtandem.algorithms.sequence_scores import (
    batch_log_probs,
    embed,
    final_answer,
    n_path_tokens,
    sequence_log_probs,
)
from fedtandem.models.language_model import LanguageModel

PAIRS = [
    ("Q 3 + 5 A", " 3 + 5 = 8 ; # 8"),
    ("Q 3 + 5 * 2 A", " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"),
    ("Q 1 - 9 A", " #"),
]


def test_a_log_probability_is_the_sum_over_the_paths_tokens_with_eos(client_lm: LanguageModel) -> None:
    (text,) = client_lm.tokenizer.encode_many(PAIRS[:1])
    ids = torch.from_numpy(text.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        log_q = client_lm.model(input_ids=ids).logits[0].log_softmax(-1)
    by_hand = sum(float(log_q[i, text.input_ids[i + 1]]) for i in text.positions)
    assert abs(float(sequence_log_probs(client_lm, [text])[0]) - by_hand) < 1e-4
    assert int(text.input_ids[-1]) == client_lm.tokenizer.eos_id
    assert n_path_tokens([text])[0] == len(text.positions)


def test_neither_the_batch_nor_padding_nor_its_side_matters(client_lm: LanguageModel) -> None:
    texts = client_lm.tokenizer.encode_many(PAIRS)
    together = sequence_log_probs(client_lm, texts)
    apart = np.concatenate([sequence_log_probs(client_lm, [text]) for text in texts])
    with torch.no_grad():
        left = batch_log_probs(client_lm, texts, "left").numpy()
    assert np.allclose(together, apart, atol=1e-4)
    assert np.allclose(together, left, atol=1e-4)


def test_a_path_that_was_cut_off_has_none(client_lm: LanguageModel) -> None:
    texts = client_lm.tokenizer.encode_many(PAIRS, max_length=8)
    assert np.isnan(sequence_log_probs(client_lm, texts)).tolist() == [not text.scored for text in texts]


def test_embeddings_tell_texts_apart_and_do_not_depend_on_the_batch(client_lm: LanguageModel) -> None:
    ids = [text.input_ids for text in client_lm.tokenizer.encode_many(PAIRS)]
    found = embed(client_lm, ids)
    assert found.shape == (3, 16)
    assert found.dtype == np.float32
    assert np.allclose(found, np.concatenate([embed(client_lm, [one]) for one in ids]), atol=1e-4)
    assert np.linalg.norm(found[0] - found[1]) > 0.05
    assert not np.allclose(found, embed(client_lm, ids, seed=1))


def test_the_final_answer_is_the_last_word() -> None:
    assert final_answer(" 3 + 5 = 8 ; # 8") == "8"
    assert final_answer("  ") == ""
