"""`fedtandem export`: a trained party out of a run, as a PEFT folder or a merged model, with a model card."""

import json
import shutil
from pathlib import Path

from fedtandem.atomic import whole_folder, write_text
from fedtandem.errors import ConfigError
from fedtandem.models.load import ModelSpec, load_model


def trained_parties(run: Path) -> dict[str, list[str]]:
    """method -> parties whose final state the run kept."""
    root = run / "adapters"
    if not root.is_dir():
        return {}
    return {
        method.name: sorted(party.name for party in method.iterdir() if party.is_dir())
        for method in sorted(root.iterdir())
        if method.is_dir()
    }


def export_command(
    run: Path, *, party: str, output: Path, method: str | None = None, merge: bool = False
) -> Path:
    """Write one party's final model where stock transformers and PEFT load it.

    Args:
        run: a finished run folder.
        party: `server` or a client's name.
        output: the folder to make; must not exist.
        method: which method's state; the run's first by default.
        merge: fold the adapter into the base model: `AutoModelForCausalLM.from_pretrained(output)` needs nothing else.

    Raises:
        ConfigError: the run kept no such state, or `output` exists.
    """
    if not (run / "run.json").is_file():
        raise ConfigError(
            f"{run} is no run folder: it has no run.json. Name the folder `fedtandem run` wrote."
        )
    record = json.loads((run / "run.json").read_text())
    chosen = method or record["methods"][0]
    kept = trained_parties(run)
    if party not in kept.get(chosen, []):
        known = "; ".join(f"{name}: {', '.join(parties)}" for name, parties in kept.items()) or "none"
        raise ConfigError(f"the run kept no state of {party!r} under method {chosen!r}. It kept {known}.")
    if output.exists():
        raise ConfigError(f"{output} exists already. Name a folder that does not.")
    source = run / "adapters" / chosen / party
    lm = load_model(ModelSpec(model=str(source), tuning_method="none"))
    from fedtandem.reports.model_card import model_card

    with whole_folder(output) as draft:
        if merge:
            merged = lm.model.merge_and_unload() if hasattr(lm.model, "merge_and_unload") else lm.model
            merged.save_pretrained(draft)
            lm.tokenizer.save(draft)
        else:
            shutil.copytree(source, draft, dirs_exist_ok=True)
        write_text(draft / "README.md", model_card(run, chosen, party, merged=merge))
    return output
