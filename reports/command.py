"""``quantwright report``, ``recommend`` and ``publish``."""

from pathlib import Path
from typing import Any

import click

from quantize.checkpoint.kv_cache import KvShape
from quantize.errors import BadInput
from quantize.terminal import emit_json, log, say
from quantize.units import parse_size
from reports import build
from reports.card import CardOptions, check_repo_id
from reports.changes import changes
from reports.compare import compare
from reports.hub import read_existing, upload
from reports.load import load
from reports.memory import find_shapes, read_shape
from reports.publish import prepare, write_repository
from reports.recommend import Limits, to_json
from reports.recommend import recommend as decide
from reports.terminal import print_advice, print_changes, print_rows

RUNS = click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
JSON = click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")


@click.command()
@RUNS
@click.option(
    "-o", "out", type=click.Path(path_type=Path), help="folder of the report  [default: <first RUN>/report]"
)
@click.option("--png", is_flag=True, help="write the trade-off plots as PNG too (needs matplotlib)")
@click.option(
    "--since", type=click.Path(path_type=Path), metavar="RUN", help="say what changed since this earlier run"
)
@JSON
def report(runs: tuple[Path, ...], out: Path | None, png: bool, since: Path | None, as_json: bool) -> int:
    """Compare everything measured in RUNs: index.html, report.md, results.csv, report.json and plots.

    Several runs merge into one report; what was measured twice counts once, from the run named last.
    """
    document = build(list(runs), out, png=png)
    if as_json:
        if since is not None:
            document["changes"] = _changes(since, runs)
        emit_json(document)
        return 0
    print_rows(document["rows"])
    if since is not None:
        print_changes(_changes(since, runs), since)
    say(f"report: {Path(document['report']).resolve()}")
    return 0


def _changes(since: Path, runs: tuple[Path, ...]) -> list[dict[str, Any]]:
    return changes(compare(load([since])), compare(load(runs)))


@click.command()
@RUNS
@click.option("--memory", help="memory for weights, KV cache and overhead, e.g. 8GiB")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="tokens the KV cache must hold  [default: the model's own context]",
)
@click.option(
    "--max-divergence",
    type=click.FloatRange(min=0),
    help="highest mean KL divergence from the source, in nats",
)
@click.option("--max-loss", help="largest increase of perplexity over the source's, e.g. 1%")
@click.option("--max-accuracy-drop", help="largest loss of accuracy in any task, e.g. 2%")
@click.option("--min-tokens-per-second", type=click.FloatRange(min=0), help="lowest decode speed")
@click.option("--runtime", default="", help="program that will serve: llama.cpp, transformers, vllm")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="folder with the config.json from which the KV cache is computed",
)
@click.option(
    "--kv-bytes-per-token",
    type=click.IntRange(min=1),
    help="KV cache of one token in all layers, instead of --model",
)
@JSON
def recommend(
    runs: tuple[Path, ...],
    memory: str | None,
    context: int | None,
    max_divergence: float | None,
    max_loss: str | None,
    max_accuracy_drop: str | None,
    min_tokens_per_second: float | None,
    runtime: str,
    model: Path | None,
    kv_bytes_per_token: int | None,
    as_json: bool,
) -> int:
    """Name the smallest artifact whose loss, memory and speed are within the limits, judged by the worse end
    of each interval."""
    limits = Limits(
        memory_bytes=parse_size(memory) if memory else None,
        context=context,
        divergence=max_divergence,
        loss=_share(max_loss, "--max-loss"),
        accuracy_drop=_share(max_accuracy_drop, "--max-accuracy-drop"),
        tokens_per_second=min_tokens_per_second,
        runtime=runtime,
    )
    if limits.empty:
        raise BadInput(
            "recommend: no limit given; give at least one of --memory, "
            "--max-divergence, --max-loss, --max-accuracy-drop, --min-tokens-per-second"
        )
    comparison = compare(load(runs))
    shape = (
        KvShape(((kv_bytes_per_token, None),)) if kv_bytes_per_token else read_shape(model) if model else None
    )
    advice = [
        decide(group, limits, {} if shape else find_shapes(group, [Path(), *runs]), shape)
        for group in comparison.groups
        if group.measured or len(comparison.groups) == 1
    ]
    if as_json:
        emit_json([to_json(found) for found in advice])
        return 0
    for found in advice:
        print_advice(found, several=len(advice) > 1)
    return 0


def _share(text: str | None, option: str) -> float | None:
    """``1%`` or ``0.01`` -> 0.01. Errors: BadInput."""
    if text is None:
        return None
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise BadInput(f"{option} {text!r}: expected a share such as 1% or 0.01")
    return value


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT...")
@click.option("--repo", required=True, help="repository on the Hub: user/name")
@click.option(
    "--results",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="run whose numbers the card shows",
)
@click.option(
    "--base-model", help="Hub id of the source, for the card  [default: the manifest's, if it is a Hub id]"
)
@click.option("--license", "license_id", help="licence of the card  [default: the source's]")
@click.option(
    "--license-name", help="name of a licence that the Hub lists as `other`  [default: the source's]"
)
@click.option(
    "--license-link", help="URL of its text, or its file in the repository  [default: the source's]"
)
@click.option(
    "--quantized-by",
    help="name of the person or organisation that quantized it  [default: the user part of --repo]",
)
@click.option("--name", help="the model's own name, by which GGUF files are called  [default: the source's]")
@click.option("--private", is_flag=True, help="create the repository private")
@click.option("--revision", help="branch to upload to, created where it does not exist  [default: main]")
@click.option("--collection", help="title of your collection to put the repository in, created where needed")
@click.option("--add", is_flag=True, help="publish into a repository that holds other files too")
@click.option("--message", help="commit message")
@click.option(
    "--allow-unverified", is_flag=True, help="publish artifacts that were converted with --verify none"
)
@click.option(
    "--allow-no-derivatives", is_flag=True, help="publish though the licence forbids derivatives (ND)"
)
@click.option("--dry-run", is_flag=True, help="upload nothing: write the repository to -o")
@click.option(
    "-o", "out", type=click.Path(path_type=Path), help="folder for the repository as it would be uploaded"
)
@click.option("--force", is_flag=True, help="replace the repository, or the empty folder, at -o")
@JSON
def publish(
    artifacts: tuple[Path, ...],
    repo: str,
    runs: tuple[Path, ...],
    base_model: str | None,
    license_id: str | None,
    license_name: str | None,
    license_link: str | None,
    quantized_by: str | None,
    name: str | None,
    private: bool,
    revision: str | None,
    collection: str | None,
    add: bool,
    message: str | None,
    allow_unverified: bool,
    allow_no_derivatives: bool,
    dry_run: bool,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Make a Hub repository of ARTIFACTs with a model card that shows the measured numbers, and upload it.

    Several GGUF artifacts go into one repository, one commit each. What is there already stays, as does what
    you wrote in its card between <!-- keep --> and <!-- /keep -->. HF_TOKEN holds the token, HF_ENDPOINT the
    Hub.
    """
    if dry_run and out is None:
        raise BadInput("publish --dry-run: give -o DIR, the folder to write the repository to")
    options = CardOptions(repo, base_model, license_id, license_name, license_link, quantized_by, name)
    check_repo_id(repo)
    existing = None if dry_run else read_existing(repo, revision)
    repository = prepare(
        list(artifacts),
        list(runs),
        options,
        allow_unverified=allow_unverified,
        allow_no_derivatives=allow_no_derivatives,
        existing=existing,
        add=add,
        say=log,
    )
    if out is not None:
        write_repository(repository, out, force, [*artifacts, *runs])
    document: dict[str, Any] = {"repo": repo, "files": sorted(repository.files), "dry_run": dry_run}
    if out is not None:
        document["folder"] = str(out)
    if not dry_run:
        document["url"] = upload(
            repo,
            repository.commits,
            existing=existing,
            private=private,
            revision=revision,
            message=message,
            collection=collection,
            say=log,
        )
    if as_json:
        emit_json(document)
    else:
        say(document.get("url") or f"{len(repository.files)} files for {repo} in {out}; nothing was uploaded")
    return 0
