"""`fedtandem generate` as typed."""

import argparse
import json
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--draft", metavar="MODEL", help="the small model (hub name, folder, embedded:NAME)")
    parser.add_argument("--target", metavar="MODEL", help="the large model")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="a prompt; the answer to a single one is shown as it is written",
    )
    parser.add_argument("--prompts", type=Path, metavar="F", help='JSON lines with "prompt"')
    parser.add_argument(
        "--mode",
        choices=["exact", "bounded", "fedhlm", "local", "cloud"],
        default="exact",
        help="exact: the large model's own law; bounded: within --eps of it; fedhlm: keep what is sure "
        "(default exact)",
    )
    parser.add_argument("--eps", type=float, help="mode bounded: total variation of a whole answer")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="made by calibrate: tau, uncertainty and the bounds of mode bounded",
    )
    parser.add_argument(
        "--block", type=int, default=6, metavar="N", help="drafts per verification (default 6)"
    )
    parser.add_argument(
        "--tau", type=float, help="uncertainty above which to ask (default: the policy's, else 0.3)"
    )
    parser.add_argument(
        "--uplink",
        choices=["shared_noise", "scalar", "sparse", "greedy"],
        default="shared_noise",
        help="what is sent per draft; all but greedy sample (default shared_noise)",
    )
    parser.add_argument(
        "--uncertainty",
        choices=["expected", "entropy", "margin", "max_prob"],
        help="default: the policy's, else expected",
    )
    parser.add_argument(
        "--bridge", choices=["auto", "slem", "tli"], default="auto", help="between different tokenizers"
    )
    parser.add_argument(
        "--peer",
        choices=["off", "draft", "answer"],
        default="off",
        help="what the large model wrote for an earlier prompt with the same words: drafts it verifies (mode exact) or "
        "answers to uncertain tokens (mode fedhlm)",
    )
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--chat-template", action="store_true", help="wrap prompts in each model's template")
    parser.add_argument(
        "--audit",
        choices=["none", "passing", "all"],
        default="passing",
        help="whose error is measured: of kept tokens that the large model reads anyway, or of all",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines, one per prompt and in order")
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    from fedtandem.inference.settings import DecodeSettings

    settings = DecodeSettings(
        mode=arguments.mode,
        uplink=arguments.uplink,
        block=arguments.block,
        eps=arguments.eps,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        temperature=arguments.temperature,
        audit=arguments.audit,
        **({} if arguments.peer == "off" else {"peer": arguments.peer}),
    )
    from fedtandem.federation.generate import GenerateRequest, generate_command, in_words

    shows = arguments.prompt is not None and len(arguments.prompt) == 1 and not arguments.json
    answers = generate_command(
        GenerateRequest(
            draft=arguments.draft,
            target=arguments.target,
            prompt=tuple(arguments.prompt) if arguments.prompt else None,
            prompts=arguments.prompts,
            policy=arguments.policy,
            tau=arguments.tau,
            uncertainty=arguments.uncertainty,
            bridge=arguments.bridge,
            chat_template=arguments.chat_template,
            batch_size=arguments.batch_size,
            output=arguments.output,
            settings=settings,
            shares=arguments.peer != "off",
        ),
        (lambda _, text: print(text, end="", flush=True)) if shows else None,
    )
    if arguments.json:
        listed = {} if arguments.output else {"answers": answers.rows}
        noted = {"note": answers.note} if answers.note else {}
        print(json.dumps({**answers.totals, **listed, **noted}))
        return 0
    if shows:
        print()
    elif arguments.output is None:
        for row in answers.rows:
            print(json.dumps(row, ensure_ascii=False))
    print(in_words(answers.totals))
    if answers.note:
        print(f"WARNING {answers.note}")
    return 0
