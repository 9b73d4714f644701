"""The command line: one table, command word -> function. A command parses, calls and prints, no more.

Nothing heavy is imported here: each command imports what it calls when it is called.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtandem import __version__
from fedtandem.errors import FedtandemError, Interrupted
from fedtandem.federation.flags import calibrate, carrier, deploy, doctor, generate, route, trace, watch
from fedtandem.federation.select import select_call, select_flags
from fedtandem.serving import explaining
from fedtandem.serving import flags as serving

EXIT_CODES = (
    "exit codes: 0 ok, 1 internal error, 2 usage or config, 3 data, 4 model or tokenizer, 5 network, 6 quorum,\n"
    "7 privacy budget, 8 out of memory, 9 invalid message, 10 disk full, 130 interrupted (resume with --resume)"
)


@dataclass(frozen=True)
class Command:
    """One command word.

    Attributes:
        says: one line for the help.
        arguments: adds its flags to a parser.
        call: does it; the exit code.
    """

    says: str
    arguments: Callable[[argparse.ArgumentParser], None]
    call: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after the program's name; None takes the process's.

    Returns:
        The exit code; a fault is one message on stderr.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command is None:
        _parser().print_help()
        return 0
    try:
        return COMMANDS[arguments.command].call(arguments)
    except FedtandemError as fault:
        return _say(str(fault), fault.exit_code, arguments)
    except KeyboardInterrupt:
        return _say(
            "interrupted; a run goes on where it stopped with --resume", Interrupted.exit_code, arguments
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
        return 0
    except MemoryError:
        return _say("out of memory: use smaller batches or federation.keep_models = false", 8, arguments)
    except Exception as fault:
        text = f"internal error: {type(fault).__name__}: {fault}"
        return _say(text if arguments.debug else f"{text} (--debug shows where)", 1, arguments)


def _say(message: str, code: int, arguments: argparse.Namespace) -> int:
    if arguments.debug:
        traceback.print_exc()
    if getattr(arguments, "json", False):
        print(json.dumps({"error": message, "exit_code": code}), file=sys.stderr)
    else:
        print(f"fedtandem {arguments.command}: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedtandem",
        description="A server LLM and client SLMs improve each other without sharing private data.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedtandem {__version__}")
    parser.set_defaults(debug=False, command=None)
    words = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for word, command in COMMANDS.items():
        sub = words.add_parser(
            word, help=command.says, description=command.says[0].upper() + command.says[1:] + "."
        )
        command.arguments(sub)
        sub.add_argument("--debug", action="store_true", help="show the whole traceback of a fault")
    return parser


# -- run, demo, study, check -------------------------------------------------------------------------------------


def _config_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help='config (.toml, .yaml), or "recipe:NAME" for a shipped one')
    parser.add_argument(
        "-o",
        "--override",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one key, e.g. server.tuning.learning_rate=1e-4 or clients.clinic-a.dtype=float32",
    )


def _output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def _demo_flags(parser: argparse.ArgumentParser) -> None:
    _output_flags(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="draws data, secret tables and batches (default 0)"
    )
    parser.add_argument(
        "--controls", default="standalone", metavar="METHOD,...",
        help="beside it (default standalone, at no cost; llm2slm: the untouched server teaches, half as long again)",
    )  # fmt: skip


def _demo(arguments: argparse.Namespace) -> int:
    from fedtandem.federation.demo import demo_command

    return demo_command(
        output=arguments.output, json_output=arguments.json, seed=arguments.seed, controls=arguments.controls
    )


def _run_flags(parser: argparse.ArgumentParser) -> None:
    _config_flags(parser)
    _output_flags(parser)
    parser.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    carrier.add(parser)


def _run(arguments: argparse.Namespace) -> int:
    from fedtandem.config import load_config

    config = load_config(arguments.file, [*arguments.overrides, *carrier.overrides(arguments)])
    from fedtandem.federation.runs import run_command

    folder = arguments.output or Path("runs") / config.name
    engine = carrier.engine(config, arguments)
    code = run_command(
        config, output=folder, resume=arguments.resume, json_output=arguments.json, engine=engine
    )
    page = folder / "report.html"
    if code == 0 and config.report.open and page.is_file():
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return code


def _study_flags(parser: argparse.ArgumentParser) -> None:
    _config_flags(parser)
    _output_flags(parser)


def _study(arguments: argparse.Namespace) -> int:
    from fedtandem.studies.study import study_command

    return study_command(
        arguments.file,
        output=arguments.output,
        overrides=arguments.overrides,
        json_output=arguments.json,
    )


def _check_flags(parser: argparse.ArgumentParser) -> None:
    _config_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of FILE's kind and stop")


def _check(arguments: argparse.Namespace) -> int:
    from fedtandem.federation.preflight import check_command

    return check_command(
        arguments.file,
        overrides=arguments.overrides,
        json_output=arguments.json,
        schema_only=arguments.schema,
    )


# -- init, recipes -----------------------------------------------------------------------------------------------


def _init_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--public", type=Path, required=True, metavar="F", help="the set all parties share")
    parser.add_argument(
        "--private",
        type=Path,
        required=True,
        action="append",
        metavar="F",
        help="one file per client; repeat",
    )
    parser.add_argument("--server", metavar="MODEL", help="the server's model (hub name or folder)")
    parser.add_argument("--client-model", metavar="MODEL", help="the clients' model (hub name or folder)")
    parser.add_argument(
        "--test", type=Path, metavar="F", help="held-out rows; else a tenth of the public set"
    )
    parser.add_argument("--output", type=Path, default=Path("fedtandem.toml"), metavar="FILE")
    parser.add_argument("--force", action="store_true", help="replace the file")


def _init(arguments: argparse.Namespace) -> int:
    from fedtandem.federation.init import init_command

    print(
        init_command(
            public=arguments.public,
            private=arguments.private,
            server=arguments.server,
            client_model=arguments.client_model,
            test=arguments.test,
            output=arguments.output,
            force=arguments.force,
        )
    )
    return 0


def _recipes_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="copy this recipe; without a name: list them")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to copy to (default: ./NAME.toml)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def _recipes(arguments: argparse.Namespace) -> int:
    from fedtandem.config.recipes import recipes_command

    print(recipes_command(arguments.name, output=arguments.output, json_output=arguments.json))
    return 0


# -- eval, report, export, inspect -------------------------------------------------------------------------------


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="hub name, folder, PEFT folder (with its adapter) or embedded:NAME"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="F", help="held-out rows")
    parser.add_argument("--preset", help="columns, template and metric of a well-known set, e.g. boolq")
    parser.add_argument("--metric", choices=["exact_match", "accuracy", "bits_per_byte", "rouge_l"])
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many rows")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--max-length", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def _eval(arguments: argparse.Namespace) -> int:
    from fedtandem.federation.evaluate import EvalRequest, eval_command

    result = eval_command(
        EvalRequest(
            model=arguments.model,
            data=arguments.data,
            preset=arguments.preset,
            metric=arguments.metric,
            limit=arguments.limit,
            batch_size=arguments.batch_size,
            max_length=arguments.max_length,
        )
    )
    if arguments.json:
        print(json.dumps({"metric": result.metric, "value": result.value, "n": result.n}))
    else:
        better = "higher" if result.higher_is_better else "lower"
        print(f"{result.metric} {result.value:.4f} over {result.n} items ({better} is better)")
    return 0


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a run or a study")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the folder")


def _report(arguments: argparse.Namespace) -> int:
    from fedtandem.reports.html import report_command

    print(report_command(arguments.folder, arguments.output))
    return 0


def _export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--party", required=True, help='"server" or a client\'s name')
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--method", help="which method's state (default: the run's algorithm)")
    parser.add_argument(
        "--merge", action="store_true", help="one whole model that AutoModelForCausalLM loads alone"
    )


def _export(arguments: argparse.Namespace) -> int:
    from fedtandem.federation.export import export_command

    print(
        export_command(
            arguments.run,
            party=arguments.party,
            output=arguments.output,
            method=arguments.method,
            merge=arguments.merge,
        )
    )
    return 0


def _inspect_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, help="a frame, an adapter folder, or the folder of a run or a study"
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from fedtandem.reports.inspect import inspect_command

    print(inspect_command(arguments.path))
    return 0


# -- joint ---------------------------------------------------------------------------------------------------------


def _joint_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder")
    parser.add_argument("--prompts", type=int, default=80, metavar="N", help="of its test sets (default 80)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def _joint(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fedtandem.federation.joint import joint_command
    from fedtandem.reports.tables import print_joint

    rows = joint_command(arguments.run, prompts=arguments.prompts)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print_joint(rows)
    return 0


# -- paths ---------------------------------------------------------------------------------------------------------


def _paths_flags(parser: argparse.ArgumentParser) -> None:
    from fedtandem.federation.paths import paths_flags

    paths_flags(parser)


def _paths(arguments: argparse.Namespace) -> int:
    from fedtandem.federation.paths import paths_command

    return paths_command(arguments)


# -- align, vocabulary -------------------------------------------------------------------------------------------


def _pair_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="the receiver's tokenizer")
    parser.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="the sender's tokenizer")
    parser.add_argument("--mode", choices=["bytes", "mined"], default="bytes")


def _align_flags(parser: argparse.ArgumentParser) -> None:
    _pair_flags(parser)
    parser.add_argument("--input", type=Path, required=True, metavar="F", help='JSON lines with "text"')
    parser.add_argument(
        "--output", type=Path, required=True, metavar="F", help="JSON lines, in the same order"
    )


def _align(arguments: argparse.Namespace) -> int:
    from fedtandem.models.pairs import align_command

    align_command(
        base=arguments.base,
        teacher=arguments.teacher,
        mode=arguments.mode,
        input=arguments.input,
        output=arguments.output,
    )
    return 0


def _vocabulary_flags(parser: argparse.ArgumentParser) -> None:
    _pair_flags(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="F", help='{"teacher id": base id or -1}'
    )


def _vocabulary(arguments: argparse.Namespace) -> int:
    from fedtandem.models.pairs import vocabulary_command

    vocabulary_command(
        base=arguments.base, teacher=arguments.teacher, mode=arguments.mode, output=arguments.output
    )
    return 0


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "a server and two clients teach each other, from nothing to a report", _demo_flags, _demo
    ),
    "init": Command("write a checked config from your own files", _init_flags, _init),
    "check": Command("validate a config, show tokens, estimate cost; loads no weights", _check_flags, _check),
    "run": Command("run a config's method and its controls", _run_flags, _run),
    "study": Command("methods x seeds, with intervals", _study_flags, _study),
    "eval": Command("score a model on held-out rows", _eval_flags, _eval),
    "generate": Command(
        "answer prompts with a small and a large model together", generate.add, generate.call
    ),
    "paths": Command("have reasoning paths written for prompts, and checked", _paths_flags, _paths),
    "select": Command("choose which prompts a model should learn from another", select_flags, select_call),
    "joint": Command("what a run's SLMs spare its LLM, before and after co-tuning", _joint_flags, _joint),
    "watch": Command("see a run while it runs, on the terminal or as a page", watch.add, watch.call),
    "report": Command("write the page of a run or a study", _report_flags, _report),
    "export": Command(
        "take a trained party out of a run, as PEFT folder or whole model", _export_flags, _export
    ),
    "inspect": Command("print a frame, an adapter or a run in plain words", _inspect_flags, _inspect),
    "align": Command("which tokens of two tokenizers belong together in a text", _align_flags, _align),
    "vocabulary": Command("map one vocabulary to another", _vocabulary_flags, _vocabulary),
    "trace": Command("record what two models decide on your data", trace.add, trace.call),
    "calibrate": Command(
        "learn from a trace, or from the counts of sites, when the SLM should ask",
        calibrate.add,
        calibrate.call,
    ),
    "route": Command("what a threshold policy would have done on a trace", route.add, route.call),
    "deploy": Command("write what an operator needs to run a config across sites", deploy.add, deploy.call),
    "doctor": Command("check a site before it joins, and say what to mend", doctor.add, doctor.call),
    "serve": Command("serve device, edge and cloud to any OpenAI client", serving.add, serving.call),
    "explain": Command("why each token of a served answer went where", explaining.add, explaining.call),
    "recipes": Command("list the shipped configs, or copy one", _recipes_flags, _recipes),
}
"""Command word -> what it does."""


if __name__ == "__main__":
    sys.exit(main())
