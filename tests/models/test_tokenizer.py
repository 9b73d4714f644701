"""Text to ids, positions and bytes, for real tokenizers and for some made on the spot."""

import json
from collections import UserDict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedtandem.errors import DataError, ModelError, UnknownTokenId
from fedtandem.models.encoded import ANSWER, PROMPT, Encoded
from fedtandem.models.tokenizer import TextTokenizer

SMALL = ("llama2", "gpt2", "bert-uncased", "t5", "roberta", "gpt-neox", "falcon")
LARGE = ("qwen2", "llama3", "o200k")
APPROXIMATE = ("bert-uncased", "t5")
SPECIAL_STRINGS = (
    "</s>", "<s>", "<unk>", "<pad>", "<mask>", "<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>",
    "<|begin_of_text|>", "<|eot_id|>", "<|startoftext|>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]",
    "<extra_id_0>", ">>ANSWER<<",
)  # fmt: skip


class Tokenizers(UserDict[str, TextTokenizer]):
    """By name; a failing example shows no vocabulary."""

    def __repr__(self) -> str:
        return "tokenizers"


@pytest.fixture(scope="module")
def tokenizers(shared) -> Tokenizers:
    folders = {name: shared / "tokenizers" / name for name in SMALL} | {
        "stories": shared / "models/stories260k"
    }
    return Tokenizers({name: TextTokenizer.from_pretrained(folder) for name, folder in folders.items()})


def characters(alphabet: str = "abcdefghijklmnopqrstuvwxyz 0123456789+=?", **tokens: str) -> TextTokenizer:
    """A character-level tokenizer whose token strings are the text."""
    vocab = {token: i for i, token in enumerate(["</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **tokens)
    )


def strings(tokenizer: TextTokenizer, sample: Encoded) -> list[str]:
    return [tokenizer.card.tokens[i] for i in sample.input_ids]


# -- real tokenizers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_recorded_ids_are_reproduced_and_special_strings_stay_text(shared, name):
    tokenizer = TextTokenizer.from_pretrained(shared / "tokenizers" / name)
    recorded = json.loads((shared / "tokenizers" / name / "expected_ids.json").read_text(encoding="utf-8"))
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for case in recorded["cases"] if isinstance(recorded, dict) else recorded:
        text, ids = case["text"], case["ids"]
        if ids and not any(string in text for string in SPECIAL_STRINGS):
            assert tokenizer.encode_prompt(text).tolist() == before + ids

    marks = tokenizer.card.special - {tokenizer.card.roles.get("unk")}
    for string in SPECIAL_STRINGS:
        sample = tokenizer.encode(f"Say {string} twice: {string}", f" {string} {string}", positions="all")
        inside = sample.input_ids[len(before) : -1].tolist()
        assert marks.isdisjoint(inside), string
        assert sample.input_ids[-1] == tokenizer.eos_id
        if name not in APPROXIMATE:
            assert tokenizer.decode_answer(sample.targets[sample.segment == ANSWER]) == f" {string} {string}"


words = st.lists(
    st.one_of(st.text(max_size=5), st.sampled_from(["é", "e\u0301", "▁", "  ", "🎉", "</s>", "ab"]))
).map("".join)


@settings(max_examples=40, deadline=None)
@given(prompt=words, answer=words.filter(bool), positions=st.sampled_from(["answer", "all"]))
@example(prompt="Answer: ", answer="yes", positions="all")
@example(prompt="cafe", answer="\u0301 au lait", positions="answer")
@example(prompt="a  ", answer="  b", positions="all")
def test_what_holds_for_every_sample(tokenizers, prompt, answer, positions):
    for name, tokenizer in tokenizers.items():
        sample = tokenizer.encode(prompt, answer, max_length=10_000, positions=positions)
        rows = sample.segment == ANSWER
        ends = sample.end_byte[rows]
        known = ends[ends >= 0]
        assert sample.scored
        assert sample.n_answer_bytes == len(answer.encode())
        assert (np.diff(sample.positions) > 0).all()
        assert sample.positions[-1] == len(sample.input_ids) - 2
        assert sample.is_eos.tolist() == [False] * (len(rows) - 1) + [True]
        assert (np.diff(known) > 0).all()  # no two rows at one byte
        assert known[-1] == sample.n_answer_bytes
        assert known[0] == 0 or tokenizer.decode_answer(sample.targets[rows]) == ""
        if positions == "answer":
            assert rows.all()
        if name not in (*APPROXIMATE, "gpt-neox", "falcon", "llama2", "stories"):
            assert tokenizer.decode_answer(sample.targets[rows]) == answer
        # The token just before the answer predicts its first token, whatever stands there.
        assert sample.targets[rows][-1] == tokenizer.eos_id
        many = tokenizer.encode_many([(prompt, answer)] * 2, max_length=10_000, positions=positions)
        assert all((one.input_ids == sample.input_ids).all() for one in many)


@settings(max_examples=40, deadline=None)
@given(text=words.filter(bool))
def test_ends_of_a_whole_text_rise_to_its_last_byte(tokenizers, text):
    for name in ("gpt2", "roberta"):
        tokenizer = tokenizers[name]
        ends = tokenizer.token_ends(text, tokenizer.encode("", text, eos=False, max_length=10_000).targets)
        assert ends[-1] == len(text.encode())
        assert (np.diff(ends) > 0).all()


def test_ids_that_do_not_spell_the_text_have_no_ends(tokenizers):
    assert tokenizers["gpt2"].token_ends("hello", [1, 2, 3]).tolist() == [-1, -1, -1]
    assert tokenizers["bert-uncased"].token_ends("hello", [1, 2, 3]).tolist() == [-1, -1, -1]
    assert tokenizers["gpt2"].token_ends("", []).tolist() == []


def test_special_strings_as_tokens_count_their_bytes(tokenizers):
    llama = tokenizers["llama2"]
    ids = llama.hf("a</s> b", add_special_tokens=False)["input_ids"]
    assert llama.card.tokens[ids[1]] == "</s>"
    assert llama.token_ends("a</s> b", ids).tolist()[-1] == 7
    roberta = tokenizers["roberta"]
    ids = roberta.hf("a  <mask> b", add_special_tokens=False)["input_ids"]
    assert roberta.token_ends("a  <mask> b", ids).tolist()[-1] == 11  # <mask> swallows the space before it


def test_the_prompts_end_is_always_a_boundary(tokenizers):
    gpt2 = tokenizers["gpt2"]
    #  together "unbelievable" is one token or two, none of which ends after "unb"
    sample = gpt2.encode("unb", "elievable")
    assert sample.end_byte.tolist()[0] == 0
    assert gpt2.decode_answer(sample.targets) == "elievable"
    #  apart, SentencePiece's dummy space must not slip into the answer
    llama = tokenizers["llama2"]
    sample = llama.encode("unb", "elievable")
    assert llama.decode_answer(sample.targets) == "elievable"
    assert sample.end_byte[-1] == 9


def test_bos_is_used_where_the_tokenizer_itself_uses_it(tokenizers):
    first = {name: tokenizer.encode("Q:", " a").input_ids[0] for name, tokenizer in tokenizers.items()}
    bos = {name: tokenizer.bos_id for name, tokenizer in tokenizers.items()}
    assert bos == {
        "llama2": 1, "gpt2": None, "bert-uncased": 101, "t5": None, "roberta": 0, "gpt-neox": None, "falcon": None,
        "stories": 1,
    }  # fmt: skip
    assert all(first[name] == bos[name] for name in bos if bos[name] is not None)
    assert tokenizers["gpt2"].pad_id == tokenizers["gpt2"].eos_id
    assert tokenizers["bert-uncased"].eos_id == 102  # it closes texts with [SEP] of its own accord


def test_text_windows_have_a_first_context_and_no_eos(tokenizers):
    for name, first in (("llama2", 1), ("gpt2", 50256), ("t5", 1)):
        sample = tokenizers[name].encode("", "Once upon a time", eos=False)
        assert sample.input_ids[0] == first
        assert sample.end_byte[0] == 0
        assert sample.input_ids[-1] != tokenizers[name].eos_id
        assert not sample.is_eos.any()
    mixed = tokenizers["gpt2"].encode_many([("", "a"), ("", "a")], eos=[True, False])
    assert [sample.is_eos.sum() for sample in mixed] == [1, 0]


def test_all_positions_add_the_prompts_rows(tokenizers):
    #  <s> ▁a b c d </s>: segments of the predicted tokens
    sample = tokenizers["stories"].encode("a", " b", positions="all")
    assert strings(tokenizers["stories"], sample) == ["<s>", "▁a", "▁b", "</s>"]
    assert sample.positions.tolist() == [0, 1, 2]
    assert sample.segment.tolist() == [PROMPT, ANSWER, ANSWER]
    assert sample.end_byte.tolist() == [0, 0, 2]
    assert sample.context_ids.tolist() == sample.input_ids[:3].tolist()
    # Without BOS nothing predicts the first token.
    sample = tokenizers["gpt2"].encode("a b", " c", positions="all")
    assert sample.positions.tolist() == [0, 1, 2]
    assert sample.segment.tolist() == [PROMPT, ANSWER, ANSWER]


@given(max_length=st.integers(1, 12))
def test_a_cut_answer_is_not_scored(tokenizers, max_length):
    tokenizer = tokenizers["gpt2"]
    whole = tokenizer.encode("one two three", " four five six")
    cut = tokenizer.encode("one two three", " four five six", max_length=max_length)
    assert len(whole.input_ids) == 7
    assert cut.scored == (max_length >= 7)
    assert cut.input_ids.tolist() == whole.input_ids[:max_length].tolist()
    assert cut.positions.tolist() == [p for p in whole.positions.tolist() if p + 1 < max_length]
    assert cut.n_answer_bytes == whole.n_answer_bytes


def test_a_chat_template_holds_no_positions_and_its_marks_are_tokens(tokenizers):
    llama = TextTokenizer(tokenizers["llama2"].hf)
    llama.hf.chat_template = "<s>[INST] {{ messages[0]['content'] | trim }} [/INST]</s>"
    try:
        sample = llama.encode(" </s>é ", " yes", chat_template=True, positions="all")
        prompt = llama.encode_prompt(" </s>é ", chat_template=True)
    finally:
        llama.hf.chat_template = None
    tokens = strings(llama, sample)
    assert tokens[0] == "<s>"
    assert tokens.count("</s>") == 2  # the template's and the EOS; the prompt's own is text
    assert prompt.tolist() == sample.input_ids[: len(prompt)].tolist()
    answer = sample.positions[sample.segment == ANSWER]
    assert answer.tolist() == [len(prompt) - 1, len(prompt)]
    assert sample.end_byte[sample.segment == ANSWER].tolist() == [0, 4]
    assert llama.decode_answer(sample.targets[sample.segment == PROMPT]) == " </s>é "  # no byte is trimmed
    with pytest.raises(ModelError, match="no chat template"):
        tokenizers["gpt2"].encode("a", "b", chat_template=True)


def test_saved_and_loaded_it_is_the_same_vocabulary(tokenizers, tmp_path):
    tokenizers["stories"].save(tmp_path)
    assert (
        "TokenizersBackend" not in (tmp_path / "tokenizer_config.json").read_text()
    )  # unknown to transformers 4
    again = TextTokenizer.from_pretrained(tmp_path)
    assert again.card.hash == tokenizers["stories"].card.hash
    assert (
        again.encode("a", " b").input_ids.tolist()
        == tokenizers["stories"].encode("a", " b").input_ids.tolist()
    )


def test_faults_say_what_to_do(tokenizers, tmp_path):
    gpt2 = tokenizers["gpt2"]
    with pytest.raises(DataError, match=r"sample 1 .* empty answer"):
        gpt2.encode_many([("a", "b"), ("c", "")])
    with pytest.raises(ValueError, match="positions is 'some'"):
        gpt2.encode("a", "b", positions="some")
    with pytest.raises(UnknownTokenId, match=r"token id 50257 .* ends at 50256"):
        gpt2.decode_answer([50257])
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        TextTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="only 10 rows"):
        TextTokenizer(gpt2.hf, model_vocab_size=10)
    with pytest.raises(ModelError, match="not a fast tokenizer"):
        TextTokenizer(object())
    with pytest.raises(ModelError, match="no EOS"):
        TextTokenizer(
            PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
        )


# -- tokenizers made on the spot ---------------------------------------------------------------------------------


def test_a_character_level_tokenizer_spells_its_text():
    tokenizer = characters()
    sample = tokenizer.encode("12+30=", " 42")
    assert tokenizer.card.marker == ""
    assert sample.end_byte.tolist() == [0, 1, 2, 3]
    assert tokenizer.decode_answer(sample.targets) == " 42"
    assert tokenizer.decode_answer([*sample.targets[:2].tolist(), 0, *sample.targets[:1].tolist()]) == " 4"
    assert tokenizer.encode("a", "bécd").end_byte.tolist() == [
        0,
        1,
        3,
        4,
        5,
    ]  # é is unknown, its place is not


def test_a_model_that_holds_its_marks_as_pieces_cannot_be_made_to_write_them():
    words_model = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "end": 2, "it": 3}, unk_token="<unk>"))
    words_model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf = PreTrainedTokenizerFast(tokenizer_object=words_model, eos_token="</s>", unk_token="<unk>")
    tokenizer = TextTokenizer(hf)
    assert tokenizer.encode("end", " </s> it").input_ids.tolist() == [2, 1, 3, 0]
    assert hf("end </s> it", split_special_tokens=True)["input_ids"] == [2, 0, 3]  # what would happen without


def test_added_tokens_that_are_not_special_stay_tokens(tokenizers):
    neox = tokenizers["gpt-neox"]
    sample = neox.encode("x =", "    1")
    assert "   " in strings(neox, sample) or "    " in strings(neox, sample)
    assert neox.decode_answer(sample.targets) == "    1"


def test_bos_before_every_text_as_opt_has_it(tokenizers):
    backend = Tokenizer.from_str(tokenizers["roberta"].spelling.tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    opt = TextTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
        )
    )
    assert (opt.bos_id, opt.eos_id, opt.pad_id) == (2, 2, 1)
    assert opt.encode("a", " b").input_ids[[0, -1]].tolist() == [2, 2]


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_metaspace_before_the_text_is_no_byte_of_it(scheme):
    vocab = {"</s>": 0, "▁": 1, "a": 2, "b": 3}
    model = Tokenizer(models.BPE(vocab, []))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    model.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>"))
    sample = tokenizer.encode("", "a b")
    assert sample.end_byte[sample.end_byte >= 0].tolist() == [0, 1, 2, 3]
    assert tokenizer.first_pieces(["a", " a", ""]) == [2, 1, -1]


def test_a_lower_casing_byte_level_tokenizer_is_read_by_its_offsets():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({token: i for i, token in enumerate(["</s>", *alphabet])}, []))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>"))
    ends = tokenizer.encode("", "AÉb").end_byte.tolist()
    assert ends == [0, 1, -1, 3, 4]  # É is two tokens of one character


def test_a_conversation_is_written_as_the_template_writes_it_and_its_marks_stay_text(tokenizers):
    llama = TextTokenizer(tokenizers["llama2"].hf)
    llama.hf.chat_template = (
        "{% for m in messages %}<s>[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}<s>[assistant]"
    )
    try:
        messages = [("system", "be brief"), ("user", "a </s> b"), ("assistant", "c"), ("user", "d")]
        ids = llama.encode_messages(messages).tolist()
        assert llama.has_chat_template
        # One mark per message closes it, whatever the messages hold.
        assert ids.count(llama.eos_id) == len(messages)
        plain = [("user", "hello"), ("assistant", "yes"), ("user", "more")]
        whole = llama.hf.apply_chat_template(
            [{"role": role, "content": text} for role, text in plain],
            tokenize=False,
            add_generation_prompt=True,
        )
        spelled = b"".join(llama.spelling.surface[i] for i in llama.encode_messages(plain).tolist()).decode()
        # Llama 2 puts a space of its own before a text.
        assert spelled.replace("<s> [", "<s>[", 1) == whole
        llama.hf.chat_template = "{{ messages[0]['content'] }}"
        with pytest.raises(ModelError, match="0 times"):
            llama.encode_messages(plain)
    finally:
        llama.hf.chat_template = None
    assert not llama.has_chat_template
