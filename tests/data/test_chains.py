"""The chains playground: every step can be checked, private operators are secret, splits do not overlap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.data.chains import (
    ALPHABET,
    BASE_OPERATORS,
    PRIVATE_OPERATORS,
    ChainsSource,
    chain_parts,
    chain_path,
    chain_prompt,
    check_path,
    make_chains,
    operator_tables,
    read_path,
    read_prompt,
)
from fedtandem.errors import DataError

OPERATORS = (*BASE_OPERATORS, *PRIVATE_OPERATORS)
TABLES = operator_tables(OPERATORS, table_seed=3)

lengths = st.integers(1, 6)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    n = draw(lengths)
    digits = draw(st.lists(st.integers(0, 9), min_size=n + 1, max_size=n + 1))
    operators = draw(st.lists(st.sampled_from(OPERATORS), min_size=n, max_size=n))
    return digits, operators


def test_a_worked_example() -> None:
    digits, operators = [3, 5, 2], ["+", "*"]
    assert chain_prompt(digits, operators) == "Q 3 + 5 * 2 A"
    assert chain_path(digits, operators, TABLES) == " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"


def test_the_public_operators_are_arithmetic_modulo_ten() -> None:
    assert (TABLES["+"][7, 8], TABLES["-"][2, 5], TABLES["*"][7, 8], TABLES["m"][2, 9]) == (5, 7, 6, 9)


@given(chains())
def test_a_prompt_reads_back_as_its_digits_and_operators(chain: tuple[list[int], list[str]]) -> None:
    digits, operators = chain
    assert read_prompt(chain_prompt(digits, operators)) == (digits, operators)


@given(chains())
def test_the_gold_path_passes_the_check_and_uses_known_characters_only(
    chain: tuple[list[int], list[str]],
) -> None:
    digits, operators = chain
    prompt, path = chain_prompt(digits, operators), chain_path(digits, operators, TABLES)
    assert check_path(prompt, path, TABLES)
    assert set(prompt + path) <= set(ALPHABET)


@given(chains(), st.data())
def test_no_other_single_character_makes_the_path_right(
    chain: tuple[list[int], list[str]], data: st.DataObject
) -> None:
    digits, operators = chain
    prompt, path = chain_prompt(digits, operators), chain_path(digits, operators, TABLES)
    place = data.draw(st.integers(0, len(path) - 1))
    other = data.draw(st.sampled_from([c for c in ALPHABET if c != path[place]]))
    assert not check_path(prompt, path[:place] + other + path[place + 1 :], TABLES)


@given(chains(), st.text(max_size=40))
def test_arbitrary_text_is_judged_without_a_crash(chain: tuple[list[int], list[str]], path: str) -> None:
    digits, operators = chain
    gold = chain_path(digits, operators, TABLES)
    assert check_path(chain_prompt(digits, operators), path, TABLES) == (path == gold)


def test_a_step_the_checker_does_not_know_is_judged_by_its_form() -> None:
    known = {name: TABLES[name] for name in BASE_OPERATORS}
    wrong = (int(TABLES["@"][3, 4]) + 1) % 10
    path = f" 3 @ 4 = {wrong} ; # {wrong}"
    assert check_path("Q 3 @ 4 A", path, known)
    assert not check_path("Q 3 @ 4 A", path, TABLES)
    assert not check_path("Q 3 @ 4 A", f" 3 @ 5 = {wrong} ; # {wrong}", known)


def test_a_result_must_be_carried_on() -> None:
    assert read_path("Q 3 + 5 * 2 A", " 3 + 5 = 8 ; 7 * 2 = 4 ; # 4") is None


@pytest.mark.parametrize(
    "prompt", ["", "Q A", "Q 3 A", "Q 3 + A", "Q 3 + 12 A", "Q 3 ? 4 A", "Q  3 + 4 A", "Q ３ + 4 A"]
)
def test_what_is_no_chain_is_refused_by_name(prompt: str) -> None:
    with pytest.raises(DataError, match="is no chain"):
        read_prompt(prompt)


def test_a_private_table_depends_on_its_seed_and_sign_alone() -> None:
    again = operator_tables(("&", "@"), table_seed=3)
    assert np.array_equal(again["@"], TABLES["@"])
    other = operator_tables(("@",), table_seed=4)["@"]
    assert np.mean(other == TABLES["@"]) < 0.3
    assert np.mean(TABLES["&"] == TABLES["@"]) < 0.3


def test_the_same_source_makes_the_same_set_and_another_seed_another() -> None:
    source = ChainsSource(n=50, seed=5)
    assert source.samples() == ChainsSource(n=50, seed=5).samples()
    assert source.samples() != ChainsSource(n=50, seed=6).samples()


@given(st.integers(0, 40), st.sampled_from([(1,), (1, 2), (2, 3, 4)]), st.integers(0, 5))
def test_prompts_take_turns_with_what_they_must_contain(n: int, steps: tuple[int, ...], seed: int) -> None:
    source = ChainsSource(n=n, steps=steps, must_contain=("@", "&"), seed=seed, table_seed=1)
    samples = source.samples()
    assert len({sample.id for sample in samples}) == len(samples) == n
    counts = {"@": 0, "&": 0}
    for sample in samples:
        digits, operators = read_prompt(sample.prompt)
        assert len(operators) in steps
        # Never both: a prompt with both is beyond either client.
        assert ("@" in operators) != ("&" in operators)
        counts["@" if "@" in operators else "&"] += 1
        assert sample.answer == chain_path(digits, operators, operator_tables(operators, 1))
        secret = "@" if "@" in operators else "&"
        kind = f"{len(operators)} steps with {secret}" if len(operators) > 1 else f"1 step with {secret}"
        assert sample.fields == {"steps": len(operators), "operators": "".join(operators), "stratum": kind}
    assert abs(counts["@"] - counts["&"]) <= len(steps)


def test_a_noisy_operator_has_a_new_table_in_every_prompt_and_changes_no_other_answer() -> None:
    noisy = ChainsSource(
        n=2000, steps=(1,), operators=(), must_contain=("@", "&"), noisy=("&",), table_seed=3
    )
    plain = ChainsSource(n=2000, steps=(1,), operators=(), must_contain=("@", "&"), table_seed=3)
    right = {"@": [], "&": []}
    for sample in noisy.samples():
        operator = str(sample.fields["operators"])
        right[operator].append(check_path(sample.prompt, sample.answer or "", TABLES))
    assert all(right["@"])
    assert 0.05 <= np.mean(right["&"]) <= 0.15  # one in ten by chance
    assert noisy.samples() == noisy.samples() != plain.samples()


def test_a_public_operator_can_take_a_turn_too() -> None:
    samples = ChainsSource(n=100, steps=(1, 2), must_contain=("@", "+"), seed=0).samples()
    assert sum("@" in sample.prompt for sample in samples) == 50


def test_train_and_test_parts_share_no_chain_of_two_steps_and_every_fact() -> None:
    train = {
        s.prompt
        for s in ChainsSource(n=800, steps=(1, 2), must_contain=("@",), seed=0, part="train").samples()
    }
    test = {
        s.prompt
        for s in ChainsSource(n=800, steps=(1, 2), must_contain=("@",), seed=1, part="test").samples()
    }
    shared = train & test
    assert shared
    assert all(len(read_prompt(prompt)[1]) == 1 for prompt in shared)
    assert chain_parts("Q 1 @ 2 A") == ("train", "test")


def test_unlabelled_prompts_are_the_labelled_ones_without_answers() -> None:
    labelled = ChainsSource(n=20, seed=2).samples()
    bare = ChainsSource(n=20, seed=2, labelled=False).samples()
    assert [s.prompt for s in bare] == [s.prompt for s in labelled]
    assert all(s.answer is None for s in bare)


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(DataError, match="unknown operator '\\^'"):
        ChainsSource(operators=("^",)).samples()
    with pytest.raises(DataError, match="both empty"):
        make_chains(3, operators=(), steps=(1,), seed=0, tables={})
    with pytest.raises(DataError, match="every length"):
        make_chains(3, operators=("+",), steps=(0,), seed=0, tables=TABLES)
