"""The README.md of a published repository: metadata the Hub reads, and the measured numbers with what they
rest on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.artifact.artifact import Artifact, grouped
from quantize.artifact.attestation import verified_here
from quantize.errors import BadInput
from quantize.methods.registry import format_of
from quantize.metrics import KL_MEAN, PERPLEXITY, TOP1_AGREEMENT
from quantize.terminal import printable, shell
from quantize.units import spell_size
from reports.format import heading
from reports.markdown import code, escape, footnotes, note_line, table, task_tables
from reports.naming import as_converted
from reports.rows import Group, Row, head
from reports.use import check_it, engine_words, use

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

#: Path in the repository -> the artifact it comes from and its name there.
Files = dict[str, tuple[Artifact, str]]
BITS = re.compile(r"(?:int|nf|fp|float|q|iq|tq)(\d+)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

#: tags of a source that say how it is stored, which is what changed
STORAGE_TAGS = frozenset(
    (
        "safetensors",
        "pytorch",
        "tf",
        "jax",
        "transformers",
        "gguf",
        "ggml",
        "onnx",
        "mlx",
        "peft",
        "lora",
        "fp8",
        "8-bit",
        "4-bit",
    )
)


@dataclass(frozen=True)
class CardOptions:
    """What the person says about the repository; None: from the artifacts."""

    repo: str
    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    quantized_by: str | None = None
    name: str | None = None


def check_repo_id(repo: str) -> None:
    """Errors: BadInput where ``repo`` is not ``user/name`` as the Hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise BadInput(f"--repo {repo!r}: {error}") from None
    if repo.count("/") != 1:
        raise BadInput(f"--repo {repo!r}: expected user/name")


def base_model_of(artifacts: Sequence[Artifact], options: CardOptions) -> str | None:
    """The Hub id that the artifacts come from; None where they come from a local folder and none was
    given."""
    if options.base_model:
        if not HUB_ID.fullmatch(options.base_model):
            raise BadInput(f"--base-model {options.base_model!r}: expected a Hub id, org/name")
        return options.base_model
    return artifacts[0].manifest.source.hub_id


def _checked_against(artifacts: Sequence[Artifact], base: str | None) -> str:
    """The source, at its revision where it has one."""
    revision = artifacts[0].manifest.source.revision
    return source_name(artifacts, base) + (f"@{revision}" if base and revision else "")


def source_name(artifacts: Sequence[Artifact], base_model: str | None) -> str:
    """What the card calls the source: never a path of the machine that it was made on."""
    return base_model or artifacts[0].manifest.source.name


@dataclass(frozen=True)
class Terms:
    """The card's licence: the person's word, else what the source's card says."""

    license: str | None
    name: str | None = None
    link: str | None = None

    @property
    def missing(self) -> str:
        """What the Hub asks for beside ``license: other`` and is not known."""
        return (
            ""
            if self.license != "other" or (self.name and self.link)
            else "license_link"
            if self.name
            else "license_name"
        )


def terms_of(artifacts: Sequence[Artifact], options: CardOptions) -> Terms:
    """A link into the source's repository is followed there where that file is not among the artifact's
    own."""
    source = artifacts[0].manifest.source
    if options.license:
        return Terms(options.license, options.license_name, options.license_link)
    link = options.license_link or source.license_link
    if (
        link
        and not options.license_link
        and "://" not in link
        and link not in artifacts[0].manifest.files
        and source.hub_id
    ):
        link = f"https://huggingface.co/{source.hub_id}/blob/{source.revision}/{link.removeprefix('./')}"
    return Terms(source.license, options.license_name or source.license_name, link)


def model_card(
    artifacts: Sequence[Artifact], files: Files, options: CardOptions, group: Group | None, plot: str = ""
) -> "ModelCard":
    """``files``: see ``Files``. ``group``: measured numbers of exactly these artifacts; ``plot``: the file of
    the repository that draws them."""
    from huggingface_hub import ModelCard

    base = base_model_of(artifacts, options)
    metadata = card_data(artifacts, options, group, base)
    body = [f"# {escape(options.repo.partition('/')[2])}", "", *_introduction(artifacts, base), ""]
    body += ["## Files", "", *_files(files), ""]
    if group is not None:
        picture = [f"![Size and quality of each file]({plot})", ""] if plot else []
        body += ["## Measured", "", *picture, *table(group), "", *footnotes(group), "", *task_tables(group)]
    else:
        body += [
            "## Measured",
            "",
            "These files have not been measured yet: `quantwright "
            "eval` and `--results RUN` put numbers here.",
            "",
        ]
    body += [
        *use(artifacts, list(files), options.repo),
        *check_it(artifacts, list(files), options.repo, _checked_against(artifacts, base), base is not None),
        *_made(artifacts, base),
        *_notes(artifacts),
        *_reproduction(artifacts, base),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(body).rstrip() + "\n")


def card_data(
    artifacts: Sequence[Artifact], options: CardOptions, group: Group | None, base: str | None
) -> "ModelCardData":
    """``base``: the source's Hub id, where it has one."""
    from huggingface_hub import ModelCardData

    methods = list(dict.fromkeys(str(a.manifest.recipe["method"]) for a in artifacts))
    formats = [format_of(method) for method in methods]
    tags = ["quantized", "quantwright", *(each.hub_tag for each in formats if each.hub_tag)]
    bits = {
        m.group(1)
        for a in artifacts
        if (m := BITS.search(a.manifest.recipe_short))
        and format_of(str(a.manifest.recipe["method"])).fewer_bits
    }
    tags += [f"{b}-bit" for b in sorted(bits)]
    source, terms = artifacts[0].manifest.source, terms_of(artifacts, options)
    tags += [tag for each in source.tags if (tag := printable(each)).lower() not in (*STORAGE_TAGS, *tags)]
    languages = [printable(language) for language in source.languages]
    results = _eval_results(group) if group is not None else []
    return ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base else None,
        quantized_by=options.quantized_by or options.repo.partition("/")[0],
        # Several licences stand in the manifest with commas between them; the Hub takes a list.
        license=terms.license.split(",") if terms.license and "," in terms.license else terms.license,  # type: ignore[arg-type]
        license_name=terms.name,
        license_link=terms.link,
        language=languages or None,
        library_name=formats[0].hub_library,
        pipeline_tag="text-generation",
        tags=tags,
        model_name=options.repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )


def _eval_results(group: Group) -> "list[EvalResult]":
    """Perplexity, divergence and accuracy for the Hub's model-index; the metric's name tells several
    artifacts apart."""
    from huggingface_hub import EvalResult

    out = []
    several = len(group.measured) > 1
    for row in group.measured:
        suffix = f" ({row.label})" if several else ""
        for metric in (PERPLEXITY, KL_MEAN, TOP1_AGREEMENT):
            result = row.cells.get(metric)
            if result is not None and result.value is not None:
                text = str(result.environment.get("text") or "text").partition(" (")[0]
                name = printable(Path(text).name)
                out.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "text",
                        dataset_name=name,
                        metric_type=metric,
                        metric_value=_digits(result.value),
                        metric_name=printable(f"{heading(metric)}, {result.protocol}{suffix}"),
                    )
                )
        for task, metrics in row.tasks.items():
            found = head(metrics)
            if found.value is not None:
                out.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=printable(task),
                        dataset_name=printable(task),
                        metric_type=printable(found.metric),
                        metric_value=_digits(found.value),
                        metric_name=printable(f"{heading(found.metric)}{suffix}"),
                    )
                )
    return out


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _introduction(artifacts: Sequence[Artifact], base: str | None) -> list[str]:
    source = artifacts[0].manifest.source
    name = f"[{escape(base)}](https://huggingface.co/{base})" if base else code(source_name(artifacts, base))
    recipes = ", ".join(code(a.manifest.recipe_short) for a in artifacts)
    revision = f" at revision {code(source.revision)}" if source.revision else ""
    version = escape(artifacts[0].manifest.tool.get("version", ""))
    size_words = f"{source.parameters:,} parameters, {escape(source.dtype)}"
    if source.quantized:
        size_words = f"{source.parameters:,} parameters, itself quantized: {escape(source.quantized)}"
    return [f"{name}{revision} ({size_words}), quantized to {recipes} by Quantwright {version}."]


def _files(files: Files) -> list[str]:
    lines = ["| File | Recipe | Size | Bits/weight | sha256 |", "|---|---|---:|---:|---|"]
    for path, (artifact, name) in files.items():
        if Path(name).suffix in (".gguf", ".safetensors"):
            entry, recipe = artifact.manifest.files[name], artifact.manifest.recipe_short
            bits = f"{artifact.bits_per_weight:.2f}"
            lines.append(
                f"| {code(path)} | {code(recipe)} | {spell_size(entry.size_bytes)} | {bits} | "
                f"{code(entry.sha256)} |"
            )
    return lines


def _made(artifacts: Sequence[Artifact], base: str | None) -> list[str]:
    out = ["## How it was made and checked", ""]
    for artifact in artifacts:
        m = artifact.manifest
        out.append(
            f"- {code(m.recipe_short)}: {engine_words(artifact)}; artifact digest {code(artifact.digest)}."
        )
        out.append("  " + _verification(artifact))
        if m.calibration:
            c = m.calibration
            how = f"sequences of {c.sequence_length}, seed {c.seed}, sha256 {code(c.sha256)}"
            out.append(f"  Calibrated on {c.tokens:,} tokens of {escape(Path(c.source).name)} ({how}).")
    first = artifacts[0].manifest
    out += [
        "",
        f"Source: {code(source_name(artifacts, base))}, content sha256 {code(first.source.digest)}.",
        "",
    ]
    tool = f"{first.tool.get('name', 'quantwright')} {first.tool.get('version', '')}".strip()
    libraries = [
        tool,
        *sorted({f"{name} {version}" for a in artifacts for name, version in a.manifest.libraries.items()}),
    ]
    out += [f"Made with {escape(', '.join(libraries))}.", ""]
    if any(a.manifest.source.remote_code for a in artifacts):
        out += ["Code from the source checkpoint was run to make these files (`--trust-remote-code`).", ""]
    return out


def _verification(artifact: Artifact) -> str:
    v = artifact.manifest.verification
    if v.level == "none":
        return "Not verified."
    reader = f" against {escape(v.reader)}" if v.reader else ""
    checks = []
    for check in v.checks:
        words = escape(check.name) + (f" {check.value:.3g}" if check.value is not None else "")
        words += f" (tolerance {check.tolerance:.3g})" if check.tolerance is not None else ""
        checks.append(f"{words} {'passed' if check.passed else 'FAILED'}")
    whose = (
        ""
        if verified_here(as_converted(artifact))
        else ", as claimed by the artifact's maker and not checked by the publisher"
    )
    runtime = escape(v.runtime or artifact.manifest.runtime)
    return f"Verified ({v.level}) by reopening it in {runtime}{reader}{whose}: {'; '.join(checks)}."


def _notes(artifacts: Sequence[Artifact]) -> list[str]:
    lines = [
        note_line(a.manifest.recipe_short, *note)
        for a in artifacts
        for note in grouped((n.tensor, n.what, n.why) for n in a.manifest.notes)
    ]
    return ["## Fallbacks and notes", "", *lines, ""] if lines else []


def _reproduction(artifacts: Sequence[Artifact], base: str | None) -> list[str]:
    """The conversion, with the source named as the card names it."""
    lines = ["## Reproduce", "", "```sh"]
    source = _checked_against(artifacts, base)
    for artifact in artifacts:
        m = artifact.manifest
        words = ["quantwright", "convert", source, "--to", m.recipe_short, "-o", "OUT"]
        if m.adapter:
            words += ["--adapter", m.adapter.name]
        if m.calibration:
            given = m.calibration.source
            words += [
                "--calibration",
                given if given == "stdlib" or HUB_ID.fullmatch(given) else Path(given).name,
            ]
            words += ["--calibration-tokens", str(m.calibration.tokens), "--seed", str(m.calibration.seed)]
        lines.append(shell(*words))
    return [*lines, "```", ""]


def published(group: Group, artifacts: Sequence[Artifact]) -> Group | None:
    """The rows of exactly these artifacts, by digest, and the reference; None where none was measured."""
    from dataclasses import replace

    wanted = {as_converted(a).digest for a in artifacts} | {a.digest for a in artifacts}
    rows: tuple[Row, ...] = tuple(
        row for row in group.rows if row.subject.digest in wanted and (row.cells or row.tasks)
    )
    return replace(group, rows=rows, floors=(), model=group.model) if rows else None
