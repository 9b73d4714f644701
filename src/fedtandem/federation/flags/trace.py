"""`fedtandem trace` as typed."""

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--slm", required=True, metavar="MODEL", help="the small model (hub name or folder)")
    parser.add_argument(
        "--llm",
        required=True,
        metavar="MODEL",
        help="the large model; with --llm-url the server's name for it",
    )
    parser.add_argument(
        "--llm-url",
        metavar="URL",
        help='an OpenAI-compatible endpoint, up to /v1 ("env": OPENAI_BASE_URL); key from OPENAI_API_KEY',
    )
    parser.add_argument("--data", type=Path, required=True, metavar="F", help="rows (.jsonl, .gz, .parquet)")
    parser.add_argument("--output", type=Path, default=Path("trace.parquet"), metavar="TRACE")
    parser.add_argument(
        "--kind",
        choices=["auto", "classify", "tokens", "answers"],
        default="auto",
        help="classes of documents; tokens of generated answers; whole answers (default: by the SLM's config)",
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument("--text", metavar="COLUMN", help="document or prompt (default text, prompt, question)")
    rows.add_argument("--label", metavar="COLUMN", help="class or accepted answer (default label, answer)")
    rows.add_argument("--client", metavar="COLUMN", help="whose row it is (default client, if there)")
    rows.add_argument("--cluster", metavar="COLUMN", help="that client's edge (default cluster, if there)")
    rows.add_argument("--clients", type=int, metavar="N", help="draw so many clients instead")
    rows.add_argument("--clusters", type=int, default=1, metavar="K", help="behind so many edges (default 1)")
    rows.add_argument("--alpha", type=float, metavar="A", help="skew their labels by Dirichlet(A)")
    rows.add_argument("--preset", help="columns and template of a well-known set, e.g. gsm8k")
    rows.add_argument("--limit", type=int, metavar="N", help="at most so many rows")
    answers = parser.add_argument_group("generation")
    answers.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    answers.add_argument("--draft", choices=["greedy", "sampled"], default="greedy")
    answers.add_argument("--top-k", type=int, default=64, metavar="K", help="tokens kept of each law (64)")
    answers.add_argument(
        "--embed",
        action="store_true",
        help="kind tokens: keep the SLM's hidden state of each token, for peers",
    )
    answers.add_argument(
        "--after",
        default="",
        metavar="MARK",
        help='kind answers: compare what follows the last MARK, e.g. "####"',
    )
    asking = parser.add_argument_group("asking")
    asking.add_argument("--batch-size", type=int, default=16, metavar="N")
    asking.add_argument("--max-length", type=int, default=512, metavar="TOKENS", help="of a document")
    asking.add_argument(
        "--parallel", type=int, default=4, metavar="N", help="questions to an endpoint at a time"
    )
    asking.add_argument("--tries", type=int, default=4, metavar="N", help="of each question (default 4)")
    asking.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of each try (default 60)")
    asking.add_argument("--seed", type=int, default=0, help="of drawn drafts and clients")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished recording")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out rows the endpoint has no answer to"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    from fedtandem.data.items import Columns
    from fedtandem.federation.trace import TraceRequest, trace_command

    request = TraceRequest(
        slm=arguments.slm,
        llm=arguments.llm,
        data=arguments.data,
        output=arguments.output,
        url=arguments.llm_url,
        kind=arguments.kind,
        columns=Columns(arguments.text, arguments.label, arguments.client, arguments.cluster),
        preset=arguments.preset,
        clients=arguments.clients,
        clusters=arguments.clusters,
        alpha=arguments.alpha,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        max_new_tokens=arguments.max_new_tokens,
        draft=arguments.draft,
        top_k=arguments.top_k,
        embeds=arguments.embed,
        mark=arguments.after,
        parallel=arguments.parallel,
        tries=arguments.tries,
        timeout_s=arguments.timeout,
        seed=arguments.seed,
        resume=arguments.resume,
        allow_missing=arguments.allow_missing,
    )
    print(trace_command(request, json_output=arguments.json))
    return 0
