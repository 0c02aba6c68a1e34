"""``quantwright attest``, and what ``verify --attestation`` does."""

from pathlib import Path
from typing import Any

import click

from quantize.attesting.attest import Given, artifact_of, local
from quantize.attesting.attest import attest as made_again
from quantize.attesting.bundle import SUFFIX as BUNDLE
from quantize.attesting.bundle import need_sigstore, sign
from quantize.attesting.check import check
from quantize.attesting.envelope import read_private_key, signed
from quantize.attesting.outcome import Outcome
from quantize.commands.options import apply_threads
from quantize.errors import BadInput, StepFailed
from quantize.into_place import write_json
from quantize.recipe import RunOptions
from quantize.terminal import emit_json, log, printable, say
from quantize.units import parse_size

SUFFIX = ".intoto.json"
LISTED = 20


@click.command()
@click.argument("artifact")
@click.option("--source", required=True, metavar="MODEL", help="what it was made from: a folder or a Hub id")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help=f"the statement's file; must not exist  [default: ARTIFACT{SUFFIX}, with --sigstore {BUNDLE}]",
)
@click.option(
    "--key", type=click.Path(path_type=Path), help="sign with this ed25519 private key (PEM, no password)"
)
@click.option(
    "--sigstore",
    is_flag=True,
    help="sign by an identity (of the CI's surroundings, or by a browser), which sigstore's log makes public",
)
@click.option(
    "--imatrix", type=click.Path(path_type=Path), help="importance matrix that a GGUF file was made with"
)
@click.option("--calibration", help="the calibration text, where it lies elsewhere than the manifest says")
@click.option("--adapter", type=click.Path(path_type=Path), help="the LoRA that was merged into the source")
@click.option(
    "--weights-only",
    is_flag=True,
    help="attest though settings or tokenizer differ; the statement lists them",
)
@click.option("--force", is_flag=True, help="replace the statement at --out")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or auto")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: as the manifest says]")
@click.option("--memory", help="memory limit, e.g. 8GiB")
@click.option("--trust-remote-code", is_flag=True, help="run Python code from the source")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def attest(
    artifact: str,
    source: str,
    out: Path | None,
    key: Path | None,
    sigstore: bool,
    imatrix: Path | None,
    calibration: str | None,
    adapter: Path | None,
    weights_only: bool,
    force: bool,
    device: str,
    threads: int | None,
    memory: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> int:
    """Make ARTIFACT again from its source, compare the bytes, and write a statement that they are the same.

    ARTIFACT is a folder that `convert` made, or anybody's GGUF file. Where they differ, the tensors are named
    and the exit code is 1. `quantwright verify ARTIFACT --attestation FILE` checks a statement.
    """
    path = local(artifact)
    if sigstore and key is not None:
        raise BadInput(f"--key {key}: signs in place of --sigstore; give one of them")
    if sigstore:
        need_sigstore()
    place = out or path.with_name(f"{path.resolve().name}{BUNDLE if sigstore else SUFFIX}")
    unsigned = place.with_name(f"{place.name.removesuffix(BUNDLE)}{SUFFIX}")
    for each in (place, unsigned) if sigstore else (place,):
        if each.exists() and not force:
            raise BadInput(f"{each}: already exists; choose another -o, or pass --force to replace it")
    private = read_private_key(key) if key is not None else None
    ours = artifact_of(path)
    recorded = ours.manifest.run.get("threads") if ours is not None else None
    if threads is None and isinstance(recorded, int) and 0 < recorded <= 4096:
        threads = recorded
    run = RunOptions(
        device=device,
        threads=threads,
        memory_bytes=parse_size(memory) if memory else None,
        trust_remote_code=trust_remote_code,
    )
    apply_threads(run)
    found = made_again(path, source, Given(imatrix, calibration, adapter), run)
    outcome = found.outcome
    _print(outcome)
    good = outcome.weights_follow and (weights_only or not outcome.telling)
    failed = _signed_by_identity(found.document, place, unsigned) if good and sigstore else None
    written = place if failed is None else unsigned
    signs = failed is None and (sigstore or private is not None)
    document = {
        "artifact": str(path), "equal": good, "recipe": outcome.recipe, "files": outcome.files,
        "whole": outcome.whole, "tensors": outcome.tensors,
        "differing": [each.document() for each in outcome.differing],
        "files_differ": [printable(each, 300) for each in outcome.files_differ],
        "metadata": [each.document() for each in outcome.metadata], "remarks": outcome.remarks,
        "statement": str(written) if good else None, "signed": good and signs,
    }  # fmt: skip
    if good:
        if not sigstore:
            write_json(place, found.document if private is None else signed(found.document, private))
        ways = "" if sigstore else "; --key or --sigstore signs it"
        say(f"{written}: {'signed' if signs else f'not signed{ways}'}")
    if as_json:
        emit_json(document)
    if not good:
        raise StepFailed(_why(path, source, outcome))
    if failed is not None:
        raise StepFailed(
            f"{failed}; the statement is kept, not signed, in {unsigned}; --force does all of it again"
        )
    return 0


def _signed_by_identity(document: dict[str, Any], place: Path, unsigned: Path) -> StepFailed | None:
    """Why it is not signed; whatever happens, hours of work are not lost."""
    try:
        bundle = sign(document)
    except BaseException as error:
        write_json(unsigned, document)
        if not isinstance(error, StepFailed):
            log(f"{unsigned}: the statement is kept, not signed")
            raise
        return error
    write_json(place, bundle)
    return None


def _print(outcome: Outcome) -> None:
    for each in outcome.differing[:LISTED]:
        say(str(each))
    if len(outcome.differing) > LISTED:
        say(f"and {len(outcome.differing) - LISTED} more tensors")
    for words in outcome.files_differ:
        say(printable(words, 300))
    for change in outcome.metadata[: 2 * LISTED]:
        say(f"{'metadata' if change.group == 'about' else change.group}: {change}")
    for remark in outcome.remarks:
        log(f"note: {printable(remark, 300)}")
    if outcome.weights_follow:
        say(
            f"{outcome.tensors:,} tensors: every byte follows from the source; of {len(outcome.files)} files "
            f"{len(outcome.whole)} are the same whole"
        )


def _why(path: Path, source: str, outcome: Outcome) -> str:
    if outcome.differing:
        count = len(outcome.differing)
        what = (
            f"{count} of {outcome.tensors} tensors {'does' if count == 1 else 'do'} not follow from {source}"
        )
    elif outcome.files_differ:
        what = f"{len(outcome.files_differ)} files are not what {source} gives"
    else:
        what = (
            f"its weights follow from {source}, its settings or tokenizer do not; --weights-only attests the "
            "weights alone"
        )
    return f"{path}: {what} (listed above); no statement was written"


def check_attestation(
    artifact: str, attestation: Path, public_key: Path | None, identity: str | None, issuer: str | None
) -> dict[str, Any]:
    """Tell what was found; the same as a document. Errors: BadInput, StepFailed as of ``check``."""
    path = local(artifact)
    found = check(attestation, path, public_key, identity, issuer)
    source = found.predicate.get("source")
    name = printable(source.get("name", ""), 200) if isinstance(source, dict) else ""
    say(
        f"{path}: {len(found.files)} files are those that {attestation} attests, made from "
        f"{name or 'its source'}"
    )
    if found.issuer:
        say(f"signed by {printable(found.signed_by, 200)}, as {printable(found.issuer, 200)} says")
    elif found.signed_by:
        say(f"signed by the key {found.signed_by}")
    elif found.signed:
        say("signed; whose signature that is was not checked: give --public-key")
    else:
        say("not signed: anybody can have written it")
    if found.beside:
        say(f"not covered: {printable(', '.join(found.beside), 300)}")
    return {
        "artifact": str(path), "files": list(found.files), "signed": found.signed,
        "signed_by": found.signed_by or None, "issuer": found.issuer or None,
        "not_covered": list(found.beside), "predicate": found.predicate,
    }  # fmt: skip
