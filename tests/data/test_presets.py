"""Presets: every one reads its set, and every answer of a set begins with the same space."""

from pathlib import Path

import pytest

from fedtandem.data.load import load_samples
from fedtandem.data.presets import PRESETS, metric_of, with_preset
from fedtandem.data.source import DataSource
from fedtandem.evaluation.scorer import METRICS

FOLDERS = {"boolq_closed_book": "boolq", "gsm8k_rationale": "gsm8k"}
SPLITS = {"web_text": "train", "english_novels": "validation", "rte": "validation"}
EXAMPLES = {
    "rte": ("\nquestion: Bacteria is winning the war against antibiotics.\nanswer:", " yes"),
    "boolq": ("\nquestion: is house tax and property tax are same?\nanswer:", " yes"),
    "commonsense_qa": ("the opera house, where was it heading?\nAnswer:", " go downtown"),
    "gsm8k": ("every day at the farmers' market?\nAnswer:", " 18"),
    "super_ni": ("\nOutput:", " Deshin Shekpa."),
    "ag_news": ("Federal Mogul.\nTopic:", " Business"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_its_set(name: str, shared: Path) -> None:
    folder = shared / "data" / FOLDERS.get(name, name)
    files = {file.name.removesuffix(".jsonl.gz") for file in folder.glob("*.jsonl.gz")}
    split = SPLITS.get(name) or ("test" if "test" in files else "validation")
    source = DataSource(path=str(folder), split=split, preset=name)
    samples = load_samples(source, where="public set")
    metric = metric_of(source)
    assert metric in METRICS
    assert len(samples) > 30
    for sample in samples:
        assert sample.answer is not None
        assert sample.answer[:1] == " " or metric == "bits_per_byte"
        assert not sample.prompt.endswith(" ")
        assert (metric == "accuracy") == (sample.label is not None)
        if metric == "accuracy":
            assert sample.choices[sample.label or 0] == sample.answer
            assert all(choice.startswith(" ") for choice in sample.choices)
    if name in EXAMPLES:
        end, answer = EXAMPLES[name]
        assert samples[0].prompt.endswith(end)
        assert samples[0].answer == answer
    if metric == "bits_per_byte" and name != "gsm8k_rationale":
        assert not any(sample.eos for sample in samples)


def test_what_a_source_states_itself_goes_before_its_preset() -> None:
    source = with_preset(DataSource(preset="rte", template="{hypothesis}?", columns={"premise": "sentence1"}))
    assert source.template == "{hypothesis}?"
    assert source.columns == {"answer": "label", "premise": "sentence1"}
    assert source.answers == {"0": "yes", "1": "no"}
    assert with_preset(DataSource(path="x")) == DataSource(path="x")
    assert metric_of(DataSource(path="x")) is None


def test_novels_are_split_inside_each_book(shared: Path) -> None:
    source = DataSource(
        path=str(shared / "data/english_novels/train.jsonl.gz"),
        preset="english_novels",
        filter={"source": "Hardy_*"},
    )
    texts = {}
    for part in ("train", "validation", "test"):
        samples = load_samples(DataSource(**{**vars(source), "part": part}), where="client hardy")
        assert {str(sample.fields["source"]) for sample in samples} == {
            "Hardy_Madding_1874", "Hardy_Jude_1895", "Hardy_Tess_1891",
        }  # fmt: skip
        assert max(len((sample.answer or "").encode()) for sample in samples) == 512
        texts[part] = sum(sample.n_bytes for sample in samples)
    total = sum(texts.values())
    assert texts["train"] / total == pytest.approx(0.8, abs=0.02)
    assert texts["test"] / total == pytest.approx(0.1, abs=0.02)
