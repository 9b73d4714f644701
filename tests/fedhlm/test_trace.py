"""`trace` with models on this machine: what is written down is what the models say, wherever a recording stopped."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtandem import cli
from fedtandem.data.items import Assignment, Item, assigned
from fedtandem.data.traces import Trace, read_trace
from fedtandem.errors import DataError, ModelError
from fedtandem.evaluation.record_answers import final_answer
from fedtandem.evaluation.record_classes import class_order
from fedtandem.evaluation.record_tokens import TokenRecorder
from fedtandem.evaluation.recording import top_law
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.scratch import ScratchSpec, untrained
from fedtandem.models.scratch_tokenizer import train_tokenizer
from fedtandem.models.sequence_classifier import load_classifier

LABELS = ("World", "Sports", "Business")
TOPICS = ("the match was won by two goals", "shares fell on the market", "a minister met the queen")
CHAINS = ("embedded:chains-client-a", "embedded:chains-server")


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="session")
def classifiers(save_classifier: Callable[..., Path]) -> tuple[Path, Path]:
    return save_classifier("small", 1, LABELS), save_classifier("large", 2, LABELS[::-1])


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    rows = [
        {"id": f"d{i}", "text": f"{TOPICS[i % 3]}, number {i}", "label": i % 3, "client": f"c{i % 4}",
         "cluster": f"e{i % 2}"} for i in range(30)
    ]  # fmt: skip
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def trace_words(pair: tuple[Path, Path], data: Path, output: Path) -> list[object]:
    return ["trace", "--slm", pair[0], "--llm", pair[1], "--data", data, "--output", output]


def same_but_for_time(one: Trace, other: Trace) -> bool:
    assert one.info == other.info
    assert set(one.columns()) == set(other.columns())
    for name, column in one.columns().items():
        if not name.endswith("_ms"):
            close = column.dtype.kind == "f"
            (np.testing.assert_allclose if close else np.testing.assert_array_equal)(
                column, other.columns()[name], **({"atol": 1e-5} if close else {})
            )
    return True


# -- classes -----------------------------------------------------------------------------------------------------


def test_a_document_s_row_is_what_both_classifiers_say(classifiers, documents: Path, tmp_path: Path, capsys):
    output = tmp_path / "t.parquet"
    assert run(*trace_words(classifiers, documents, output)) == 0
    said = capsys.readouterr().out
    assert "30 documents of 4 clients behind 2 edges" in said
    trace = read_trace(output)
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    small, large = (load_classifier(str(folder)) for folder in classifiers)
    for i in (0, 7, 29):  # alone, not in a batch with others
        q, p = small.read([texts[i]]), large.read([texts[i]])
        np.testing.assert_allclose(trace.slm_probs[i], q.probs[0], atol=1e-5)
        np.testing.assert_allclose(trace.embedding[i], q.embedding[0], atol=1e-5)
        # The LLM names the same classes in another order.
        np.testing.assert_allclose(trace.llm_probs[i], p.probs[0].flip(0), atol=1e-5)
        assert LABELS[trace.answer[i]] == LABELS[::-1][int(p.probs[0].argmax())]
    assert trace.label.tolist() == [i % 3 for i in range(30)]
    assert trace.client[:5].tolist() == ["c0", "c1", "c2", "c3", "c0"]
    assert len(set(trace.answer.tolist())) > 1
    assert trace.request_bytes.tolist() == [len(text) for text in texts]
    assert (trace.slm_ms > 0).all()
    assert not output.with_name("t.parquet.parts").exists()


def test_a_trace_goes_on_to_calibrate_and_route(classifiers, documents: Path, tmp_path: Path, capsys):
    output = tmp_path / "t.parquet"
    assert run(*trace_words(classifiers, documents, output), "--batch-size", 7, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["decisions"], told["clients"]) == (30, 4)
    assert run("calibrate", output, "--budget", "20%", "--output", tmp_path / "p.json") == 0
    assert run("route", output, "--policy", tmp_path / "p.json") == 0


def test_where_a_recording_stops_changes_nothing(
    classifiers, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    whole, broken = tmp_path / "whole.parquet", tmp_path / "x" / "whole.parquet"
    assert run(*trace_words(classifiers, documents, whole), "--batch-size", 4) == 0
    from fedtandem.federation.recording import Recording

    kept = Recording.add

    def stop_after_three(self: Recording, part: Trace) -> None:
        if len(self.done()) >= 12:
            raise KeyboardInterrupt
        kept(self, part)

    monkeypatch.setattr(Recording, "add", stop_after_three)
    assert run(*trace_words(classifiers, documents, broken), "--batch-size", 4) == 130
    monkeypatch.setattr(Recording, "add", kept)
    assert not broken.exists()
    assert len(list(broken.with_name("whole.parquet.parts").glob("*.parquet"))) == 3
    assert run(*trace_words(classifiers, documents, broken)) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(*trace_words(classifiers, documents, broken), "--limit", 20, "--resume") == 2
    assert "other models, rows or settings" in capsys.readouterr().err
    assert run(*trace_words(classifiers, documents, broken), "--batch-size", 5, "--resume") == 0
    assert same_but_for_time(read_trace(whole), read_trace(broken))
    assert sorted(path.name for path in broken.parent.iterdir()) == ["whole.parquet"]


@pytest.mark.parametrize(("change", "code", "told"), [
    (["--llm", "nosuch/"], 4, "nosuch"), (["--batch-size", "0"], 2, "--batch-size 0"),
    (["--clusters", "2"], 2, "--clients"), (["--clients", "99"], 2, "--clients 99"),
    (["--text", "body"], 3, "no text under 'body'"), (["--label", "topic"], 3, "no column 'topic'"),
    (["--client", "who"], 3, "no column 'who'"), (["--data", "no.jsonl"], 3, "there is no file"),
    (["--slm", CHAINS[0], "--kind", "classify"], 4, "no classification head"),
    (["--llm-url", "localhost"], 2, "give the address the API begins with"),
    (["--kind", "tokens", "--llm-url", "http://x/v1"], 2, "--kind answers"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_refused_and_nothing_written(
    classifiers, documents: Path, tmp_path: Path, capsys, change, code, told
):
    output = tmp_path / "t.parquet"
    assert run(*trace_words(classifiers, documents, output), *change) == code
    assert told in capsys.readouterr().err
    assert not output.exists()
    assert not output.with_name("t.parquet.parts").exists()


def test_a_label_outside_the_classes_is_named(classifiers, tmp_path: Path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "a", "label": "World"}\n{"text": "b", "label": 7}\n')
    assert run(*trace_words(classifiers, data, tmp_path / "t.parquet")) == 3
    assert "label 7 is no class" in capsys.readouterr().err


def test_classes_are_matched_by_name():
    assert class_order(["a", "b", "c"], ["c", "a", "b"]) == [1, 2, 0]
    assert class_order(["a", "b"], ["LABEL_0", "LABEL_1"]) == [0, 1]
    with pytest.raises(ModelError, match="other names"):
        class_order(["a", "b"], ["a", "c"])
    with pytest.raises(ModelError, match="has 2 classes"):
        class_order(["a", "b"], ["a", "b", "c"])


# -- clients -----------------------------------------------------------------------------------------------------


def test_drawn_clients_cover_all_rows_and_a_small_alpha_skews_their_labels():
    items = [Item(str(i), "x", label=i % 4) for i in range(400)]

    def purity(alpha: float | None) -> float:
        drawn = assigned(items, Assignment(10, 4, alpha, seed=3))
        assert [item.id for item in drawn] == [item.id for item in items]
        assert len({item.client for item in drawn}) == 10
        for item in drawn:  # one edge each
            assert item.cluster == f"edge-{int(item.client.removeprefix('client-')) % 4}"
        of = {
            name: [item.label for item in drawn if item.client == name] for name in {i.client for i in drawn}
        }
        return float(np.mean([max(np.bincount(labels)) / len(labels) for labels in of.values()]))

    assert purity(0.05) > 0.6 > purity(None)


# -- tokens ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pair() -> tuple[LanguageModel, LanguageModel]:
    """Two models with one tokenizer: the shipped server, and the same with noise on its weights."""
    server = load_model(ModelSpec(CHAINS[1], tuning_method="none"))
    weights = copy.deepcopy(server.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in weights.parameters():
            tensor += 0.8 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return LanguageModel(weights, server.tokenizer, name="shaken"), server


ITEMS = [Item(f"q{i}", f"Q {i} + {9 - i} * 2 A", "c0", "e0") for i in range(6)]


def fresh(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    """The law after these tokens, read from nothing."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0, -1, : lm.tokenizer.vocab_size].softmax(-1)


@pytest.mark.parametrize("draft", ["greedy", "sampled"])
def test_every_token_holds_both_laws_after_its_prefix(pair, draft):
    small, large = pair
    recorder = TokenRecorder(small, large, draft=draft, max_new_tokens=8, top_k=5, embeds=True, seed=1)
    came = recorder.record(ITEMS).columns
    for i in range(0, len(came["draft"]), 7):
        item, place = next(one for one in ITEMS if one.id == came["session"][i]), int(came["position"][i])
        prefix = [*large.tokenizer.encode_prompt(item.text).tolist(), *came["draft"][i - place : i].tolist()]
        q, p = fresh(small, prefix), fresh(large, prefix)
        for ids, probs, law in (
            (came["slm_ids"], came["slm_probs"], q), (came["llm_ids"], came["llm_probs"], p),
        ):  # fmt: skip
            np.testing.assert_allclose(probs[i], law[torch.from_numpy(ids[i])].numpy(), atol=1e-4)
            assert came["draft"][i] in ids[i]
        assert came["answer"][i] == int(p.argmax())
        if draft == "greedy":
            assert came["draft"][i] == int(q.argmax())
        state = small.hidden_states([prefix])[0][-1]
        np.testing.assert_allclose(came["embedding"][i], state.numpy(), atol=1e-4)


def test_a_prompt_s_drafts_do_not_depend_on_its_batch(pair):
    recorder = TokenRecorder(*pair, draft="sampled", max_new_tokens=6, seed=4)
    together = recorder.record(ITEMS).columns
    alone = recorder.record(ITEMS[3:4]).columns
    mine = np.array(together["session"]) == "q3"
    assert together["draft"][mine].tolist() == alone["draft"].tolist()
    other = TokenRecorder(*pair, draft="sampled", max_new_tokens=6, seed=5).record(ITEMS).columns
    assert other["draft"].tolist() != together["draft"].tolist()


def test_an_identical_pair_never_disagrees(pair):
    came = TokenRecorder(pair[1], pair[1], max_new_tokens=8).record(ITEMS).columns
    assert (came["draft"] == came["answer"]).all()
    np.testing.assert_allclose(came["slm_probs"], came["llm_probs"], atol=1e-5)


def test_a_kept_law_always_holds_the_draft():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    ids, probs = top_law(logits, 2, torch.tensor([3, 3]))
    assert ids.tolist() == [[0, 3], [3, 2]]
    np.testing.assert_allclose(probs, logits.softmax(-1).gather(-1, ids))
    assert top_law(logits, 9, torch.tensor([0, 0]))[0].shape == (2, 4)


def test_tokens_of_two_tokenizers_from_the_command_line(tmp_path: Path, capsys):
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"prompt": item.text}) + "\n" for item in ITEMS))
    words = [*trace_words(CHAINS, data, tmp_path / "t.parquet"), "--max-new-tokens", 6, "--embed"]
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "tokens of 1 clients" in said
    assert "tokenizers differ" in said
    trace = read_trace(tmp_path / "t.parquet")
    assert (
        trace.info.vocabulary == load_model(ModelSpec(CHAINS[1], tuning_method="none")).tokenizer.vocab_size
    )
    assert trace.embedding is None
    assert trace.label is None


def test_a_prompt_that_fills_the_context_is_named(tmp_path: Path):
    tokenizer = train_tokenizer("bytes", [], 0)
    tiny = untrained(
        ScratchSpec(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_length=16), tokenizer
    )
    with pytest.raises(DataError, match=r"item 'long'.*context of 16"):
        TokenRecorder(tiny, tiny).record([Item("long", "x" * 40, "c", "e")])


# -- answers -----------------------------------------------------------------------------------------------------


def test_whole_answers_are_scored_by_what_follows_the_mark(tmp_path: Path, capsys):
    data = tmp_path / "a.jsonl"
    rows = [{"prompt": f"Q {a} + {a} A", "answer": f"# {2 * a % 10}" if a < 3 else "# 99"} for a in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--kind", "answers", "--after", "#", "--max-new-tokens", 16]
    assert run(*trace_words(CHAINS, data, tmp_path / "t.parquet"), *words) == 0
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.llm_score.tolist() == [1, 1, 1, 0, 0]  # the server can add; 99 is not what it says
    assert trace.slm_score.tolist() == [1, 1, 1, 0, 0]
    assert (trace.draft == trace.answer).all()
    assert trace.info.vocabulary == len({0, 2, 4, 6, 8})
    assert ((trace.uncertainty >= 0) & (trace.uncertainty < 0.5)).all()
    assert run("calibrate", tmp_path / "t.parquet", "--price", "0.1", "--output", tmp_path / "p.json") == 0
    capsys.readouterr()
    assert run("route", tmp_path / "t.parquet", "--policy", tmp_path / "p.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["quality"]["llm"] == pytest.approx(0.6)


def test_what_is_compared_of_an_answer():
    assert final_answer("so it is\n#### 72.", "####") == "72"
    assert final_answer(" two  words ", "####") == "two words"
    assert final_answer("a # b # c", "#") == "c"
    assert final_answer("a # b", "") == "a # b"
