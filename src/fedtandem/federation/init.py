"""`fedtandem init`: from the user's own files to a config that has been checked."""

import json
import os
from pathlib import Path

from fedtandem.atomic import write_text
from fedtandem.config import load_config
from fedtandem.data.load import load
from fedtandem.data.public import Sample
from fedtandem.data.source import DataSource
from fedtandem.errors import ConfigError, DataError

ENOUGH_TO_SPLIT = 50
"""Rows from which a tenth can be held out."""


def init_command(
    *,
    public: Path,
    private: list[Path],
    server: str | None,
    client_model: str | None,
    test: Path | None,
    output: Path,
    force: bool = False,
) -> str:
    """Write a config for these files.

    Args:
        public: the set all parties share; with answers or without.
        private: one file per client.
        server, client_model: hub names or folders; None: small models made on the spot from the public text.
        test: held-out rows for everybody; None: a tenth of the files themselves.

    Returns:
        What was decided, for the terminal.

    Raises:
        ConfigError: the output exists (unless `force`).
        DataError: a file cannot be read, or lacks answers.
    """
    if output.exists() and not force:
        raise ConfigError(f"{output} exists already; name another file with --output, or give --force.")
    said = []
    shared, labelled, how = _read_public(public)
    said.append(f"public: {len(shared)} rows, {'with' if labelled else 'without'} answers ({how})")
    names = _client_names(private)
    own = {}
    for name, file in zip(names, private, strict=True):
        loaded = load(DataSource(path=str(file)), where=f"{name}, private data")
        own[name] = loaded.samples
        said.append(f"{name}: {len(loaded.samples)} rows ({loaded.decision.reason})")
    splits = [*own.values()] + ([shared] if labelled else [])
    hold_out = test is None and all(len(samples) >= ENOUGH_TO_SPLIT for samples in splits)

    def path(file: Path) -> str:
        return json.dumps(os.path.relpath(file, output.resolve().parent), ensure_ascii=False)

    text = [
        f"# fedtandem run {output.name}",
        f"name = {json.dumps(output.stem)}",
        'controls = ["standalone_public", "server_public"]',
        "",
        *_party("server", server, path(public), labelled, hold_out, "llama", 96, "bpe", said),
        "",
    ]
    for at, (name, file) in enumerate(zip(names, private, strict=True)):
        shape = (("gpt2", 64, "pieces"), ("opt", 64, "bytes"))[at % 2]
        text += [f'[[clients]]\nname = "{name}"']
        text += _party(
            "clients", client_model, path(public), labelled, hold_out, *shape, said if at == 0 else []
        )[1:]
        text += ["  [clients.data]", f"  path = {path(file)}"]
        text += ['  part = "train"'] if hold_out else []
        text += [""]
    text += ["[public]", f"path = {path(public)}", f"labelled = {json.dumps(labelled)}"]
    text += ['part = "train"'] if hold_out and labelled else []
    text += ["", *_evaluation(test, public, names, private, shared, own, labelled, hold_out, path)]
    if test is None and not hold_out:
        said.append(
            f"fewer than {ENOUGH_TO_SPLIT} rows in a file: nothing is held out; give --test FILE to measure"
        )
    write_text(output, "\n".join(text).rstrip() + "\n")
    load_config(output)
    said.append(f"wrote {output}; look at it with: fedtandem check {output}")
    return "\n".join(said)


def _read_public(file: Path) -> tuple[list[Sample], bool, str]:
    """The public rows, whether they have answers, and how they were read."""
    try:
        loaded = load(DataSource(path=str(file)), where="public set")
        return loaded.samples, True, loaded.decision.reason
    except DataError as fault:
        try:
            loaded = load(DataSource(path=str(file), labelled=False), where="public set")
        except DataError:
            raise fault from None
        columns = set(loaded.decision.columns)
        if columns & {"answer", "completion", "messages", "conversations", "text", "choices"}:
            raise fault from None  # answers are meant to be there
        return loaded.samples, False, loaded.decision.reason


def _client_names(private: list[Path]) -> list[str]:
    """File stems as names; numbered where they are no names or not different."""
    stems = [file.name.split(".")[0].lower().replace(" ", "-") for file in private]
    usable = all(stem.replace("-", "").replace("_", "").isalnum() and stem.isascii() for stem in stems)
    if usable and len(set(stems)) == len(stems) and not set(stems) & {"server", "clients", "all"}:
        return stems
    return [f"client-{at + 1}" for at in range(len(private))]


def _party(
    section: str,
    model: str | None,
    public: str,
    labelled: bool,
    hold_out: bool,
    architecture: str,
    width: int,
    tokenizer: str,
    said: list[str],
) -> list[str]:
    """The tables of one party's model and training."""
    if model is not None:
        rate = "3e-5" if section == "server" else "1e-4"
        return [
            f"[{section}]",
            f"model = {json.dumps(model)}",
            f"  [{section}.tuning]",
            f"  learning_rate = {rate}",
        ]
    said.append(
        f"{section}: no model was named, so a small one is made on the spot from the public text; that shows the "
        "machinery on your data, not what real models reach. Name one with "
        + ("--server MODEL" if section == "server" else "--client-model MODEL")
    )
    return [
        f"[{section}]",
        f"  [{section}.tuning]",
        '  method = "full"',
        "  learning_rate = 1e-3",
        "  per_device_train_batch_size = 16",
        f"  [{section}.scratch]",
        f'  architecture = "{architecture}"',
        f"  hidden_size = {width}",
        f"  num_attention_heads = {width // 16}",
        f"  num_hidden_layers = {3 if section == 'server' else 2}",
        f'  tokenizer = "{tokenizer}"',
        "  vocab_size = 1000",
        '  positions = "all"',
        "  max_steps = 500",
        f"    [{section}.scratch.data]",
        f"    path = {public}",
        # Prompts alone are running text to a model that is made from them.
        *(['    part = "train"'] if labelled and hold_out else []),
        *([] if labelled else ['    format = "text"', '    columns = { text = "prompt" }']),
    ]


def _evaluation(
    test: Path | None,
    public: Path,
    names: list[str],
    private: list[Path],
    shared: list[Sample],
    own: dict[str, list[Sample]],
    labelled: bool,
    hold_out: bool,
    path: object,
) -> list[str]:
    """Held-out sets: a given file, or the last tenth of each file."""
    relative = path if callable(path) else str

    def one(name: str, parties: str, samples: list[Sample], file: Path, *, part: bool) -> list[str]:
        metric = "accuracy" if samples[0].choices else "bits_per_byte"
        table = ["[[evaluation.sets]]", f'name = "{name}"', f"parties = {parties}", f'metric = "{metric}"']
        table += ["  [evaluation.sets.data]", f"  path = {relative(file)}"]
        return [*table, *(['  part = "test"'] if part else []), ""]

    if test is not None:
        held_out = load(DataSource(path=str(test)), where="held-out rows").samples
        return one("test", '["*"]', held_out, test, part=False)
    if not hold_out:
        return []
    tables = one("shared", '["*"]', shared, public, part=True) if labelled else []
    for name, file in zip(names, private, strict=True):
        tables += one(f"own-{name}", f'["{name}"]', own[name], file, part=True)
    return tables
