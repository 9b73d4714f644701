"""A text that repeats a long run of private bytes is found, and only such a text."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedtandem.data.private import PrivateText, hashes_at, joined, shares_run, window_hashes
from fedtandem.data.public import Sample

few = st.text(alphabet=st.sampled_from("abé"), max_size=40)


@given(few, st.lists(few, max_size=4), st.integers(1, 12))
@example("ab", ["a", "b"], 2)  # a run never reaches from one document into the next
@example("xaaaaax", ["aaaa", "aaaaa"], 5)
@example("baaaab", ["aaaaaaaaaaaaaaaab"], 5)
def test_it_agrees_with_comparing_every_window(text: str, corpus: list[str], length: int) -> None:
    documents = [document.encode() for document in corpus]
    windows = [data[i : i + length] for data in documents for i in range(len(data) - length + 1)]
    expected = any(window in text.encode() for window in windows)
    assert shares_run(text, corpus, length) == expected


@given(st.integers(0, 300), st.integers(0, 30), st.integers(40, 60), st.integers(0, 2**32 - 1))
def test_a_copied_run_is_found_wherever_it_stands(start: int, lead: int, length: int, seed: int) -> None:
    letters = np.random.default_rng(seed).integers(97, 123, size=400).astype(np.uint8).tobytes().decode()
    copy = "#" * lead + letters[start : start + length] + "#"
    assert shares_run(copy, ["other", letters]) == (len(letters[start : start + length]) >= 50)


def test_a_canary_of_fifty_bytes_is_refused_and_of_forty_nine_is_not() -> None:
    secret = "Patient 4711 was admitted on 3 May with a fractured left wrist and sent home on 5 May."
    private = PrivateText([secret])
    assert private.repeats("# " + secret[11:61] + " #")
    assert not private.repeats("# " + secret[11:60] + " #")
    assert not private.repeats("")
    assert not PrivateText([]).repeats(secret)


def test_neighbouring_windows_are_one_text_again() -> None:
    text = np.random.default_rng(1).integers(97, 123, size=300).astype(np.uint8).tobytes().decode()
    windows = [
        Sample(f"b-0@{at}", "", text[at : at + 64], eos=False, fields={"run": "b-0", "offset": at})
        for at in (128, 0, 64, 256)
    ]
    assert joined(windows) == [text[:192], text[256:]]
    assert PrivateText.from_samples(windows).repeats(text[100:160])
    assert not PrivateText.from_samples(windows).repeats(text[170:230])
    assert joined([Sample("1", "Q:", " A"), Sample("2", "Q:", None)]) == ["Q: A", "Q:"]


@given(st.binary(max_size=60), st.integers(1, 30))
def test_equal_windows_have_equal_hashes_and_others_do_not(data: bytes, width: int) -> None:
    hashes = window_hashes(np.frombuffer(data, dtype=np.uint8), width)
    windows = [data[i : i + width] for i in range(len(data) - width + 1)]
    assert len(hashes) == len(windows)
    assert len(set(hashes.tolist())) == len(set(windows))
    starts = np.arange(len(windows))[::2]
    assert np.array_equal(hashes_at(np.frombuffer(data, dtype=np.uint8), starts, width), hashes[::2])


def test_the_index_is_small_beside_the_text() -> None:
    text = np.random.default_rng(0).integers(97, 123, size=400_000).astype(np.uint8).tobytes().decode()
    private = PrivateText([text])
    assert private._keys.nbytes + private._starts.nbytes < 0.6 * len(text)


def test_a_repetitive_corpus_does_not_slow_the_search() -> None:
    private = PrivateText(["ab" * 200_000 + "c" * 49] + ["the same footer under each letter " * 2] * 5_000)
    assert len(private._starts) < 25_000
    assert not private.repeats(("ab" * 24 + "#") * 200 + "c" * 48)
    assert private.repeats("ab" * 25)
    assert private.repeats("#b" + "c" * 49)
    assert private.repeats("under each letter the same footer under each letter")


def test_a_run_of_no_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PrivateText([], 0)
