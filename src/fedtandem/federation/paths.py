"""`fedtandem paths`: reasoning data for prompts, by a model here or behind an endpoint. Its flags and words."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedtandem.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from fedtandem.federation.path_writing import Outcome


@dataclass(frozen=True)
class PathsRequest:
    """What `fedtandem paths` was asked; see the flags."""

    prompts: Path
    output: Path
    model: str | None = None
    endpoint: str | None = None
    served_model: str = ""
    template: str = "{prompt}"
    preset: str | None = None
    prompt_column: str | None = None
    check: str = "none"
    answers: str | None = None
    form: str = "chains"
    undecided: str = "refuse"
    keep: float = 1.0
    curve: Path | None = None
    trust: Path | None = None
    precision: float = 0.9
    max_new_tokens: int = 256
    batch_size: int = 32
    parallel: int = 4
    attempts: int = 5
    timeout_s: float = 120.0
    chat_template: bool = False
    limit: int | None = None
    resume: bool = False


def paths_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `fedtandem paths`."""
    parser.add_argument(
        "prompts", type=Path, metavar="PROMPTS", help="rows with prompt, messages or conversations"
    )
    parser.add_argument("--model", help="who writes: hub name, folder or embedded:NAME")
    parser.add_argument(
        "--endpoint",
        nargs="?",
        const="",
        metavar="URL",
        help="or: an OpenAI-compatible address (default OPENAI_BASE_URL; key from OPENAI_API_KEY)",
    )
    parser.add_argument("--served-model", default="", metavar="NAME", help="the model's name at the endpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines to write")
    parser.add_argument(
        "--template",
        default="{prompt}",
        help='what the writer is shown, e.g. "{prompt}\\nThink step by step, then write #### and the answer."',
    )
    parser.add_argument("--prompt-column", metavar="COLUMN", help="where the prompt stands, e.g. question")
    parser.add_argument("--preset", help="columns and template of a well-known set, e.g. gsm8k")
    parser.add_argument(
        "--check",
        default="none",
        metavar="CHECK",
        help="exact, numeric, choice (with --answers), arithmetic, path, or package.module:function; what it refuses "
        "goes to FILE's neighbour *.refused.jsonl",
    )
    parser.add_argument(
        "--answers", metavar="COLUMN", help="column with the right answers; never shown to the writer"
    )
    parser.add_argument("--form", default="chains", help="of --check path: chains or package.module:function")
    parser.add_argument(
        "--undecided", choices=["refuse", "keep"], default="refuse", help="paths the check cannot judge"
    )
    parser.add_argument(
        "--keep", type=float, default=1.0, metavar="SHARE", help="only the surest share (--model)"
    )
    parser.add_argument(
        "--curve", type=Path, metavar="F", help="write how confidence and check agree (--model)"
    )
    parser.add_argument(
        "--trust", type=Path, metavar="F", help="no check: keep what such a curve proves right"
    )
    parser.add_argument(
        "--precision", type=float, default=0.9, help="of --trust, with 95 %% confidence (default 0.9)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="prompts at once (--model)")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="requests at once (--endpoint)")
    parser.add_argument("--attempts", type=int, default=5, metavar="N", help="per request (--endpoint)")
    parser.add_argument(
        "--timeout-s", type=float, default=120.0, metavar="S", help="of one attempt (--endpoint)"
    )
    parser.add_argument(
        "--chat-template", action="store_true", help="wrap prompts in the model's own template"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many prompts")
    parser.add_argument("--resume", action="store_true", help="go on with what FILE holds")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def paths_command(arguments: argparse.Namespace) -> int:
    """Write paths, check them, say what came out.

    Returns:
        0, or 5 where prompts are left without a path.

    Raises:
        ConfigError: flags that do not belong together, or an output that exists.
        NetworkError: the endpoint refuses or is gone; what is finished was kept.
    """
    fields = PathsRequest.__dataclass_fields__
    request = PathsRequest(**{name: getattr(arguments, name) for name in fields})
    _agree(request)
    from fedtandem.federation.path_writing import write_paths
    from fedtandem.federation.progress import Watch

    with Watch(quiet=arguments.json) as watch:
        outcome = write_paths(request, watch)
    if arguments.json:
        print(json.dumps({"output": str(request.output), **outcome.as_dict()}))
    else:
        print("\n".join(in_words(request, outcome)))
    return NetworkError.exit_code if outcome.failed else 0


def _agree(request: PathsRequest) -> None:
    if (request.model is None) == (request.endpoint is None):
        raise ConfigError("name who writes the paths: --model NAME or --endpoint URL, one of both.")
    local = {"--keep": request.keep != 1.0, "--curve": request.curve, "--trust": request.trust}
    for flag, given in local.items():
        if given and request.model is None:
            raise ConfigError(
                f"{flag} needs the writer's probabilities, which an endpoint's text has not: use --model."
            )
    if not 0 < request.keep <= 1:
        raise ConfigError(f"--keep is {request.keep}; a share lies above 0 and is at most 1.")
    if request.curve and request.check == "none":
        raise ConfigError("--curve compares confidence with a check: name one with --check.")
    if request.trust and request.check != "none":
        raise ConfigError("--trust is for prompts without a check: leave --check or --trust out.")
    if request.max_new_tokens < 1 or request.batch_size < 1 or request.parallel < 1:
        raise ConfigError("--max-new-tokens, --batch-size and --parallel are at least 1.")
    if request.output.exists() and not request.resume:
        raise ConfigError(f"{request.output} exists. Give --resume to go on with it, or another --output.")


def in_words(request: PathsRequest, outcome: "Outcome") -> list[str]:
    """The outcome as lines."""
    lines = [
        f"{len(outcome.rows)} paths in {request.output}"
        + (f" ({outcome.cached} of {outcome.written} were known already)" if outcome.cached else "")
    ]
    if request.check != "none":
        told = ", ".join(f"{count} {kind}" for kind, count in outcome.verdicts.items() if count)
        lines.append(f"check {request.check}: {told or 'nothing to judge'}")
    if outcome.refused:
        lines.append(f"{len(outcome.refused)} not used, with reasons, in {outcome.refused_file}")
    distinct = {point.n: point for point in outcome.curve}  # equal confidences stand or fall together
    lines += [
        f"the surest {point.n}: {point.right} right, that is {point.low:.0%} to {point.high:.0%} (95 %)"
        for point in distinct.values()
    ]
    lines += [f"no path for prompt {name}: {reason}" for name, reason in outcome.failed[:20]]
    if outcome.failed:
        lines.append(
            f"{len(outcome.failed)} prompts without a path; the same command with --resume asks for them again"
        )
    return lines
