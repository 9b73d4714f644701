"""Small classifiers: laws are laws, training repeats itself, votes are means, what is missing is named."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedtandem.errors import ModelError
from fedtandem.models.classifier import Vote, balanced_weights
from fedtandem.models.embedding_bag import BagSpec, EmbeddingBag, new_bag, pieces, train_rows
from fedtandem.models.scratch_classifier import EncoderSpec, save_classifier, train_encoder
from fedtandem.models.sequence_classifier import load_classifier
from fedtandem.models.tfidf import TfidfSpec, train_tfidf

TOPICS = {"Sports": "goal match team coach season", "Business": "bank stock price market trade"}
LABELS = tuple(TOPICS)
SPEC = BagSpec(vocabulary=50, dimension=8, epochs=20, batch_size=16, learning_rate=0.02)


def texts_of(n: int = 80, seed: int = 0) -> tuple[list[str], list[int]]:
    """Five words of a topic and three that say nothing."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    texts = [
        " ".join([*rng.choice(TOPICS[LABELS[c]].split(), 3), *rng.choice(["the", "of", "and"], 3)])
        for c in label
    ]
    return texts, label.tolist()


def bag() -> EmbeddingBag:
    texts, label = texts_of()
    return new_bag(SPEC, texts, LABELS).trained(texts, label)


def accuracy(model, n: int = 60) -> float:
    texts, label = texts_of(n, seed=1)
    return float((model.read(texts).probs.argmax(dim=1) == torch.tensor(label)).float().mean())


def test_a_bag_learns_topics_and_repeats_itself():
    model = bag()
    laws = model.read(texts_of(30, seed=1)[0])
    torch.testing.assert_close(laws.probs.sum(dim=1), torch.ones(30))
    assert laws.embedding.shape == (30, 8)
    assert accuracy(model) == 1.0
    assert bag().fingerprint == model.fingerprint
    assert model.trained(*texts_of(), epochs=1).fingerprint != model.fingerprint


def test_a_text_is_read_the_same_alone_and_among_longer_ones():
    model = bag()
    many = model.read(["goal", "stock stock market trade bank", "", "zebra"]).probs
    torch.testing.assert_close(model.read(["goal"]).probs[0], many[0])
    # Without a known word the bias decides.
    torch.testing.assert_close(many[2], model.weights["bias"].softmax(dim=0))
    torch.testing.assert_close(many[3], many[2])


def test_holding_only_the_rows_that_occur_is_the_same_as_holding_all():
    texts, label = texts_of(40)
    start, y = new_bag(SPEC, [*texts, "word that never comes again"], LABELS), torch.tensor(label)
    spec = BagSpec(**{**vars(SPEC), "epochs": 2, "word_dropout": 0.0, "decay": False})
    few = train_rows(start.weights, start.encode(texts), y, spec)
    ids, w = start.encode(texts), {k: v.clone().requires_grad_() for k, v in start.weights.items()}
    optimizer = torch.optim.Adam(w.values(), lr=spec.learning_rate)
    generator = torch.Generator().manual_seed(spec.seed)
    for _ in range(2):
        for batch in torch.randperm(40, generator=generator).split(spec.batch_size):
            mean = F.embedding_bag(ids[batch], w["rows"], mode="mean", padding_idx=0)
            optimizer.zero_grad()
            F.cross_entropy(F.linear(mean, w["head"], w["bias"]), y[batch]).backward()
            optimizer.step()
    for key, value in few.items():
        torch.testing.assert_close(value, w[key].detach())
    unseen = start.encode(["never again"])[0]
    assert torch.equal(few["rows"][unseen], start.weights["rows"][unseen])


def test_pairs_of_words_count_as_words():
    assert pieces("Not bad, not!", pairs=False) == ["not", "bad", "not"]
    assert pieces("Not bad, not!", pairs=True)[3:] == ["not bad", "bad not"]


def test_classes_weigh_alike():
    label = torch.tensor([0, 0, 0, 1])
    weight = balanced_weights(label, 3)
    assert float((weight[label] * (label == 0)).sum()) == pytest.approx(
        float((weight[label] * (label == 1)).sum())
    )
    assert weight[2] == 0


def test_tfidf_learns_and_knows_what_it_never_saw():
    pytest.importorskip("sklearn")
    texts, label = texts_of()
    model = train_tfidf(TfidfSpec(min_count=1), texts, label, (*LABELS, "Other"))
    laws = model.read(texts_of(30, seed=1)[0])
    assert laws.probs.dtype == laws.embedding.dtype == torch.float32
    assert (laws.probs[:, 2] == 0).all()
    torch.testing.assert_close(laws.probs.sum(dim=1), torch.ones(30))
    assert accuracy(model) == 1.0
    with pytest.raises(ModelError, match="all 3 texts have the label Sports"):
        train_tfidf(TfidfSpec(), ["a", "b", "c"], [0, 0, 0], LABELS)


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ModelError, match=r"pip install 'fedtandem\[study\]'"):
        train_tfidf(TfidfSpec(), *texts_of(), LABELS)


def test_a_vote_is_the_mean_of_its_members():
    one, texts = bag(), texts_of(10, seed=2)[0]
    other = one.trained(*texts_of(seed=3), epochs=3)
    both = Vote([one, other], "both")
    torch.testing.assert_close(both.read(texts).probs, (one.read(texts).probs + other.read(texts).probs) / 2)
    assert both.fingerprint != Vote([other, one], "both").fingerprint
    with pytest.raises(ModelError, match="same classes in the same order"):
        Vote([one, EmbeddingBag(SPEC, one.words, LABELS[::-1], one.weights)], "mixed")


@pytest.mark.parametrize(
    ("label", "told"), [([0], "80 texts with 1 labels"), ([2] * 80, "label 2 is no class")]
)
def test_labels_that_do_not_fit_are_refused(label, told):
    with pytest.raises(ModelError, match=told):
        bag().trained(texts_of()[0], label)


def test_an_encoder_is_trained_saved_and_loaded_as_any_other(tmp_path: Path):
    texts, label = texts_of(120)
    spec = EncoderSpec(hidden_size=16, layers=1, heads=2, vocabulary=300, max_length=24, epochs=6, batch_size=16,
                       learning_rate=5e-3)  # fmt: skip
    steps: list[tuple[int, int]] = []
    model = train_encoder(spec, texts, label, LABELS, on_step=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (48, 48)
    assert accuracy(model) > 0.9
    save_classifier(model, tmp_path / "topics")
    again = load_classifier(str(tmp_path / "topics"))
    assert again.labels == LABELS
    torch.testing.assert_close(again.read(texts).probs, model.read(texts).probs)
