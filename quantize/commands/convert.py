"""``quantwright convert``."""

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from quantize.artifact.artifact import Artifact, claim_output, grouped
from quantize.commands.env import offer_engines
from quantize.commands.gguf_options import OPTIONS, gguf_options, with_options
from quantize.commands.options import run_options
from quantize.conversion import convert as do_convert
from quantize.conversion import convert_together, inputs_of
from quantize.errors import QuantwrightError, StepFailed
from quantize.methods.base import Work
from quantize.methods.beside import in_one_process, read_beside, spell_beside
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.methods.registry import parse_recipe, plan, split_recipes
from quantize.process import run_child
from quantize.recipe import CalibrationOptions, Recipe, RunOptions
from quantize.sources.adapter import open_adapter
from quantize.sources.opening import open_checkpoint
from quantize.terminal import emit_json, log, say
from quantize.units import spell_size

STOPPED = (130, -2, 143, 129)  # exit codes of a child that was told to end


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "recipes",
    required=True,
    help="recipe, or several separated by commas (`quantwright methods` lists them)",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="the artifact's folder; must not exist",
)
@click.option(
    "--calibration",
    default=CalibrationOptions().source,
    show_default=True,
    help="text file, folder, Hub dataset (org/name[:config] or org/name:split:column), `stdlib` (built-in "
    "text), `self` (the model's own samples), `auto` (these where they can be had, else stdlib), or several "
    "with weights: wiki.txt*0.5,code.txt*0.25,self*0.25",
)
@click.option("--calibration-tokens", type=click.IntRange(min=128), default=32_768, show_default=True)
@click.option(
    "--calibration-length",
    type=click.IntRange(min=32),
    default=512,
    show_default=True,
    help="tokens per window",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="chooses the windows of the calibration text",
)
@click.option("--verify", type=click.Choice(["full", "tensors", "none"]), default="full", show_default=True)
@click.option("--allow-lower-verification", is_flag=True, help="accept `tensors` if `full` cannot be reached")
@click.option("--keep-failed", is_flag=True, help="keep an artifact that fails verification, as OUT.failed")
@click.option("--force", is_flag=True, help="replace the artifact, or the empty folder, at --out")
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="folder of a PEFT LoRA to merge into the model first"
)
@click.option(
    "-y", "--yes", is_flag=True, help="install engines that recipes need (`quantwright env`) without asking"
)
@click.option("--beside", hidden=True, help="recipes to make in the same process (`spell_beside`)")
@gguf_options
@run_options
def convert(
    model: str,
    recipes: str,
    out: Path,
    calibration: str,
    calibration_tokens: int,
    calibration_length: int,
    seed: int,
    verify: str,
    allow_lower_verification: bool,
    keep_failed: bool,
    force: bool,
    adapter: Path | None,
    yes: bool,
    beside: str | None,
    gguf: dict[str, Any],
    run: RunOptions,
    as_json: bool,
) -> int:
    """Make quantized artifacts from MODEL: a local folder, or a Hub id (org/name[@revision]).

    With several recipes, each is made in its own process and goes to OUT/<recipe>; GGUF recipes that take
    the same tensors share one process, which reads the model once for all of them, and so do recipes that
    this program calibrates, which share what they can.
    """
    # read by torch at its first tensor: half of the page faults of a calibrated conversion, in large pages
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    parsed = with_options([parse_recipe(text) for text in split_recipes(recipes)], gguf)
    offer_engines(parsed, yes)
    run = run.model_copy(update={"allow_tokenizer_mismatch": "allow_tokenizer_mismatch" in gguf})
    options = CalibrationOptions(
        source=calibration, tokens=calibration_tokens, sequence_length=calibration_length, seed=seed
    )
    if len(parsed) == 1 and beside:
        wanted = [(parsed[0], out), *read_beside(beside)]
        return _convert_together(
            model, wanted, options, run, verify, allow_lower_verification, force, adapter, keep_failed
        )
    if len(parsed) == 1:
        document = convert_one(model, parsed[0], out, options, run, verify, force, adapter, keep_failed)
        if as_json:
            emit_json(document)
        if not allow_lower_verification:
            refuse_lower(document, verify)
        return 0
    asked = "" if allow_lower_verification else verify
    return _convert_each(model, parsed, out, options, force, run, as_json, adapter, asked)


def _convert_together(
    model: str,
    wanted: Sequence[tuple[Recipe, Path]],
    calibration: CalibrationOptions,
    run: RunOptions,
    verify: str,
    lower: bool,
    force: bool,
    adapter: Path | None,
    keep_failed: bool,
) -> int:
    """Make all of ``wanted`` in this process; a line of JSON for each, when it is there. Exit code and error
    are those of the first: the caller makes the others that are not there by themselves."""
    log(f"{model} -> {', '.join(recipe.short for recipe, _ in wanted)}, in one process")
    results = convert_together(
        model,
        wanted,
        calibration=calibration,
        run=run,
        verify=verify,
        force=force,
        adapter=adapter,
        keep_failed=keep_failed,
        calibrating=_log_calibration,
    )
    failures: dict[Path, QuantwrightError] = {}
    for out, result in results:
        try:
            if not isinstance(result, Artifact):
                raise result
            document = _say(result, out)
            emit_json(document)
            if not lower:
                refuse_lower(document, verify)
        except QuantwrightError as error:
            failures[out] = error
        gc.collect()
        gc.freeze()  # what libraries have made: later collections, a quarter of a second each, pass it over
    first = failures.pop(wanted[0][1], None)
    for out, why in failures.items():
        log(f"{out.name}: {why}")
    if first:
        raise first
    return 0


def _log_calibration(calibration: CalibrationOptions) -> None:
    log(
        f"calibration: {calibration.source}, {calibration.tokens} tokens in "
        f"windows of {calibration.sequence_length}, seed {calibration.seed}"
    )


def refuse_lower(document: dict[str, Any], verify: str) -> None:
    """Errors: StepFailed where an artifact did not reach the level of verification that was asked for."""
    if document["verified"] != verify:
        raise StepFailed(
            f"{document['artifact']}: verified: {document['verified']}, not {verify} as asked: "
            f"{document['why_lower']}; the artifact is kept; --allow-lower-verification "
            "(in a job: allow_lower_verification: true) accepts it"
        )


def convert_one(
    model: str,
    recipe: Recipe,
    out: Path,
    calibration: CalibrationOptions,
    run: RunOptions,
    verify: str,
    force: bool,
    adapter: Path | None = None,
    keep_failed: bool = False,
) -> dict[str, Any]:
    log(f"{model} -> {recipe.short}")
    artifact = do_convert(
        model,
        recipe,
        out,
        calibration=calibration,
        run=run,
        verify=verify,
        force=force,
        adapter=adapter,
        keep_failed=keep_failed,
        calibrating=_log_calibration,
    )
    return _say(artifact, out)


def _say(artifact: Artifact, out: Path) -> dict[str, Any]:
    """Tell what was made; the same as a document."""
    manifest = artifact.manifest
    for tensors, what, why in grouped((note.tensor, note.what, note.why) for note in manifest.notes):
        log(f"note: {tensors}: {what} ({why})")
    say(
        f"{out}: {manifest.recipe_short}, {spell_size(artifact.size_bytes)}, "
        f"{artifact.bits_per_weight:.3f} bits per weight, verified: {artifact.verified}"
    )
    return {
        "artifact": str(out),
        "recipe": manifest.recipe_short,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
        "bits_per_weight": artifact.bits_per_weight,
        "verified": artifact.verified,
        "why_lower": manifest.verification.why_lower,
        "notes": [note.model_dump() for note in manifest.notes],
    }


def _convert_each(
    model: str,
    recipes: list[Recipe],
    out: Path,
    calibration: CalibrationOptions,
    force: bool,
    run: RunOptions,
    as_json: bool,
    adapter: Path | None,
    verify: str,
) -> int:
    """One child process per recipe, the same command line with that recipe alone, or with those that it
    spares work (``in_one_process``); a failure costs only its own artifact. ``verify``: the level that each
    must reach, if any."""
    checkpoint = open_checkpoint(model, trust_remote_code=run.trust_remote_code, scratch=run.scratch)
    problems: list[QuantwrightError] = []
    works: list[Work[Any]] = []
    if adapter is not None:
        open_adapter(adapter, checkpoint)
    for recipe in recipes:
        try:
            works.append(plan(checkpoint, recipe))
            claim_output(out / recipe.slug, force, inputs_of(model, recipe, calibration, adapter))
        except QuantwrightError as error:
            problems.append(error)
    if problems:
        for problem in problems[1:]:
            log(f"quantwright: {problem}")
        raise problems[0]
    made: dict[str, dict[str, Any]] = {}
    failed: set[str] = set()
    for first, *others in in_one_process(works):
        beside = [(other, out / other.slug) for other in others]
        code = _child(model, first, out, beside, made)
        left = [each for each in (first, *others) if each.digest not in made]
        if not beside or code in (1, 2):  # that is the first's own fault
            failed |= {first.digest} if code else set()
            left = [each for each in left if each is not first]
        for recipe in left:  # maybe for another's sake
            if code in STOPPED:
                break
            log(f"{recipe.short}: once more, by itself")
            code = _child(model, recipe, out, [], made)
            failed |= {recipe.digest} if code else set()
        if code in (130, -2):
            raise KeyboardInterrupt
        if code in STOPPED:  # the whole group was told to end
            return code
    if verify:  # of one beside others, its process has told why
        failed |= {digest for digest, document in made.items() if document["verified"] != verify}
    if as_json:
        emit_json([made[recipe.digest] for recipe in recipes if recipe.digest not in failed])
    if failed:
        names = [recipe.short for recipe in recipes if recipe.digest in failed]
        raise StepFailed(
            f"{len(names)} of {len(recipes)} recipes failed: {', '.join(names)}; the reasons are above"
        )
    return 0


def _child(
    model: str,
    recipe: Recipe,
    out: Path,
    beside: Sequence[tuple[Recipe, Path]],
    made: dict[str, dict[str, Any]],
) -> int:
    """The exit code of a process that makes ``recipe``, and those ``beside``; what it has
    made goes into ``made``, by the recipe's digest."""
    together = ["--beside", spell_beside(beside)] if beside else []
    done = run_child("quantize.cli", "convert", model, *_forwarded(recipe, out), *together)
    folders = {
        os.path.realpath(folder): each for each, folder in ((recipe, out / recipe.slug), *beside)
    }  # one of several is named by its whole path
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            document = json.loads(line)
            made[folders[os.path.realpath(document["artifact"])].digest] = document
        else:
            say(line)
    return done.returncode


def _forwarded(recipe: Recipe, out: Path) -> list[str]:
    """The options of this command line, for a child that converts one recipe (which holds its own
    parameters)."""
    context = click.get_current_context()
    arguments = [*recipe.arguments, "-o", str(out / recipe.slug), "--json"]
    spelled = {"recipes", "out", "as_json", "beside", *OPTIONS} - {
        "allow_tokenizer_mismatch" if isinstance(recipe, GgufRecipe) else ""
    }
    for parameter in context.command.params:
        name = parameter.name or ""
        if isinstance(parameter, click.Option) and name not in spelled:
            value = context.params.get(name)
            if parameter.is_flag and value:
                arguments.append(parameter.opts[0])
            elif not parameter.is_flag and value is not None:
                arguments += [parameter.opts[0], str(value)]
    return arguments
