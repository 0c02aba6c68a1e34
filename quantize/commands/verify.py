"""``quantwright verify``: whether a file is what it says, in every program that can load it."""

from pathlib import Path

import click

from quantize.commands.attest import check_attestation
from quantize.commands.options import Commas, run_options
from quantize.errors import BadInput
from quantize.recipe import RunOptions
from quantize.terminal import console, emit_json, log, printable, say
from quantize.verification.across_runtimes import LIMIT, Ran, Report, verify_anywhere

FIELD = 400


@click.command()
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--source", metavar="MODEL", help="what it was quantized from; finds many more faults")
@click.option(
    "--in",
    "programs",
    type=Commas(str),
    metavar="NAMES",
    help="transformers, gptqmodel, llama.cpp, vllm, auto-gptq (default: those known to open such a file; "
    "auto-gptq only by name)",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=LIMIT,
    show_default=True,
    help="seconds that one runtime may take",
)
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="folder for the weights as float32, 4 bytes each (default: among the temporary files)",
)
@click.option(
    "--attestation",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="the statement that `attest` wrote: hold the files against it (nothing runs without --source, --in)",
)
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="the key (PEM) that must have signed the statement"
)
@click.option("--identity", metavar="EMAIL_OR_URI", help="who must have signed the sigstore bundle")
@click.option("--issuer", metavar="URL", help="of the OIDC provider that must vouch for --identity")
@run_options
def verify(
    artifact: str,
    source: str | None,
    programs: list[str] | None,
    timeout: float,
    scratch: Path | None,
    attestation: Path | None,
    public_key: Path | None,
    identity: str | None,
    issuer: str | None,
    run: RunOptions,
    as_json: bool,
) -> int:
    """Run a quantized model in every runtime that can load it, and say where it is not what it should be.

    ARTIFACT is a folder, a GGUF file, a Hub id or a file of a GGUF repository, made by this program or not.
    Each runtime's logits on the same tokens are held against the weights as the format documents them, read
    by this program's own reader, against the source's and against the other runtimes'; its greedy text step
    by step. Exit code 0: all agree; 1: something differs or looks wrong; 2: bad input.
    """
    signers = {"--public-key": public_key, "--identity": identity, "--issuer": issuer}
    for name, given in signers.items() if attestation is None else ():
        if given is not None:
            raise BadInput(f"{name} {given}: checks a statement; give --attestation too")
    attested = (
        check_attestation(artifact, attestation, public_key, identity, issuer)
        if attestation is not None
        else None
    )
    if attested is not None and source is None and programs is None:
        if as_json:
            emit_json(attested)
        return 0
    run = run.model_copy(update={"scratch": scratch}) if scratch else run
    found = verify_anywhere(artifact, source, programs, run, seconds=timeout, say=log)
    _print(found)
    if as_json:
        emit_json(found.document() | ({"attestation": attested} if attested else {}))
    return int(found.wrong)


def _print(found: Report) -> None:
    for problem in found.problems:
        say(f"{problem.level}: {problem.what}: {printable(problem.why, FIELD)}")
    read = f"{found.weights_read:,} tensors read by this program" if found.weights_read else "not read"
    say(f"weights    {found.storage}: {read}")
    if found.why_not:
        say(f"weights    not run by this program: {printable(found.why_not, FIELD)}")
    if found.kl_recipe is not None:
        say(f"recipe     {found.kl_recipe:.3g} nats from {printable(found.source, FIELD)}; recorded")
    _table(found.runtimes)
    for each in found.between:
        say(
            f"{each.first} and {each.second}: {each.kl:.2g} nats apart, {each.top1:.1%} of the likeliest "
            f"tokens and the first {each.equal_tokens} tokens of the texts are equal"
        )
    for ran in found.runtimes:
        if ran.text:
            say(f"text       {ran.name}: {printable(ran.text, FIELD)!r}")
        if ran.why:
            say(f"{ran.status:10} {ran.name}: {printable(ran.why, FIELD)}")
    say("verify: something is wrong" if found.wrong else "verify: all agree")


def _table(runtimes: list[Ran]) -> None:
    from rich.table import Table

    table = Table(
        "runtime", "", "version", "KL", "allowed", "top 1", "KL to source", box=None, pad_edge=False
    )
    for ran in runtimes:
        numbers = (ran.kl, ran.tolerance)
        shown = [f"{value:.2g}" if value is not None else "-" for value in numbers]
        top1 = f"{ran.top1:.1%}" if ran.top1 is not None else "-"
        far = f"{ran.kl_source:.3g}" if ran.kl_source is not None else "-"
        table.add_row(ran.name, ran.status, ran.version or "-", *shown, top1, far)
    console().print(table)
