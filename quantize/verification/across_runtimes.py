"""The same tokens through every program that can load a file, whoever made it: what each computes is held
against the second reader's weights, the source and the other programs.

Programs run in processes of their own, each with a limit of time: one that ends or hangs costs its own line.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantize.artifact.artifact import MANIFEST, Artifact
from quantize.calibration.windows import context_length
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput, QuantwrightError, Unsupported, one_line
from quantize.file_hashes import user_hashes
from quantize.gguf.container.files import find_gguf
from quantize.hf.load import read_config, storage_format
from quantize.inspection.against_source import (
    SPLITS,
    setting_problems,
    template_problems,
    tokenizer_problems,
    vocabulary_problems,
    weight_problems,
)
from quantize.inspection.description import describe
from quantize.inspection.opening import look
from quantize.inspection.problems import Problem
from quantize.inspection.reading import open_reading
from quantize.recipe import RunOptions
from quantize.sources.hub import resolve_model
from quantize.sources.opening import open_checkpoint
from quantize.staging import temporary_folder
from quantize.terminal import printable
from quantize.verification.judging import judge, reference_of
from quantize.verification.logits import WINDOW_TOKENS, WINDOWS, fixed_rows
from quantize.verification.named_runtimes import BY_NAME, PROGRAMS, named, version_of, why_not
from quantize.verification.process import Opened, Start, within
from quantize.verification.report import Ran, Report
from quantize.verification.spill import Spill
from quantize.verification.subject import Subject, open_in, text_of

#: seconds that one program may take
LIMIT = 600.0
#: problems of headers that are no fault of the quantization
BESIDES = ("no licence", "card", "code of its own", "vocabulary larger than the tokenizer", "files",
           "rope in rope_parameters only")  # fmt: skip


def verify_anywhere(
    model: str,
    source: str | None,
    programs: Sequence[str] | None,
    run: RunOptions,
    *,
    seconds: float = LIMIT,
    start: Start | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """``model`` and ``source``: as ``open_checkpoint`` takes them. ``programs``: names of ``PROGRAMS``; None:
    all that are known to open such a file.

    Errors: BadInput for a path or name that is none; Unsupported where nothing here can be compared.
    """
    asked = [named(each) for each in programs] if programs is not None else None
    path, _ = resolve_model(model, code=run.trust_remote_code)
    gguf = find_gguf(path)
    storage = "gguf" if gguf else storage_format(path, read_config(path))
    checkpoint = open_checkpoint(source, trust_remote_code=run.trust_remote_code) if source else None
    report = Report(model, storage, source)
    report.problems = [*_from_manifest(path), *_from_headers(path, checkpoint)]
    with temporary_folder("verify", run.scratch) as scratch:
        subject = Subject(path, gguf, storage, checkpoint, run, scratch, start or within(seconds))
        _read_weights(subject, report, say)
        _choose_rows(subject)
        reference = reference_of(subject, report)
        opened = _run_all(subject, report, asked, say)
        judge(subject, report, reference, opened)
    if not report.ran and checkpoint is None and not report.wrong:
        reasons = "; ".join(f"{ran.name}: {ran.why}" for ran in report.runtimes)
        raise Unsupported(f"{model}: nothing here can open it ({reasons}); give --source to compare weights")
    if not report.ran and asked is not None and not report.wrong:
        reasons = "; ".join(f"{ran.name}: {ran.why}" for ran in report.runtimes)
        raise Unsupported(f"{model}: none of --in {','.join(asked)} runs here ({reasons})")
    return report


def _from_manifest(path: Path) -> list[Problem]:
    """Of an artifact of this program: whether its files are still those that it wrote."""
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST).is_file():
        return []
    try:
        artifact = Artifact.load(folder)
        if path.is_file() and path.name not in artifact.manifest.files:
            return []
        artifact.check_files(user_hashes().sha256)
    except (QuantwrightError, OSError) as error:
        return [Problem("wrong", "files are not its manifest's", printable(one_line(error), 300))]
    return []


def _from_headers(path: Path, source: Checkpoint | None) -> list[Problem]:
    """Without those that the source has too."""
    found = [p for p in describe(look(str(path))).problems if p.what not in BESIDES]
    if source is None or not any(p.level == "wrong" for p in found):
        return found
    theirs = {p.what for p in describe(look(str(source.folder))).problems} if _is_folder(source) else set()
    return [
        replace(p, level="note", why=f"{p.why} (its source too)") if p.what in theirs else p for p in found
    ]


def _is_folder(source: Checkpoint) -> bool:
    return any(source.folder.glob("*.safetensors"))


def _read_weights(subject: Subject, report: Report, say: Callable[[str], None]) -> None:
    """Every weight, once, by this program's reader; kept for the logits."""
    folder = subject.scratch / "weights"
    folder.mkdir()
    try:
        subject.reading = reading = open_reading(subject.path, subject.gguf, subject.source, subject.scratch)
    except (QuantwrightError, ValueError, KeyError, TypeError, IndexError) as error:
        report.why_not = printable(one_line(error), 300)
        report.problems.append(Problem("note", "weights are not read here", report.why_not))
        return
    say("reading the weights")
    subject.spill = Spill(folder)
    names = 0

    def keep(name: str, values: np.ndarray) -> None:
        nonlocal names
        names += 1
        assert subject.spill is not None
        subject.spill.add(name, values)

    weights = weight_problems(reading, subject.source, keep)
    report.weights_read = names
    report.problems += weights.problems
    subject.extra = frozenset(weights.extra)
    report.why_not = weights.unreadable
    config = reading.own or subject.source
    subject.small = config.folder if config is not None else None
    if subject.source is None:
        return
    report.problems += setting_problems(reading, subject.source)
    report.problems += template_problems(reading, subject.source)
    if reading.gguf is None:
        report.problems += tokenizer_problems(subject.path, subject.source)
    else:
        report.problems += vocabulary_problems(reading.gguf, subject.source)


def _choose_rows(subject: Subject) -> None:
    """Ids of a fixed text, by the source's tokenizer, else the file's own; random ones where none is."""
    whose = subject.source or (subject.reading.own if subject.reading else None)
    if whose is None and subject.gguf is None:
        whose = Checkpoint(subject.path, str(subject.path), None, read_config(subject.path), {})
    config = whose.config if whose is not None else {}
    length = min(context_length(config) or WINDOW_TOKENS, WINDOW_TOKENS)
    try:
        if whose is None:
            raise BadInput("no tokenizer")
        subject.rows = fixed_rows(whose, length)
    except QuantwrightError:
        text = config.get("text_config") or config
        ids = int(text.get("vocab_size") or 256)
        subject.rows = np.random.default_rng(0).integers(0, ids, (WINDOWS, length))


def _run_all(
    subject: Subject, report: Report, asked: list[str] | None, say: Callable[[str], None]
) -> dict[str, Opened]:
    opened: dict[str, Opened] = {}
    format = subject.reading.format if subject.reading else None
    reading = subject.reading
    coarse = reading is not None and reading.format.float32_kernels(reading.stage)
    for name in asked or [name for name in PROGRAMS if name not in BY_NAME]:
        if why := why_not(
            name, subject.path, subject.gguf is not None, subject.storage, format, asked is not None
        ):
            report.runtimes.append(Ran(name, "skipped", why))
            continue
        say(f"running it in {name}")
        try:
            opened[name] = found = open_in(subject, name, exact=not coarse)
        except Unsupported as error:
            report.runtimes.append(Ran(name, "skipped", printable(error, 300)))
            continue
        except QuantwrightError as error:
            report.runtimes.append(Ran(name, "failed", printable(error, 300)))
            continue
        ids = tuple(found.answer.get("generated", ()))
        known = str(found.about["version"]) if name == "vllm" else version_of(name)
        report.runtimes.append(Ran(name, "ran", version=known, ids=ids, text=text_of(subject, ids)))
        _split(subject, report, found)
    return opened


def _split(subject: Subject, report: Report, opened: Opened) -> None:
    """What llama.cpp makes of texts."""
    found = opened.answer.get("tokenizer")
    if found is None:
        return
    if why := found.get("why_not"):
        report.problems.append(Problem("note", "tokenizer", f"not compared: {printable(why, 200)}"))
    elif found["differ"]:
        why = f"in llama.cpp {printable(found['example'], 200)}; {printable(found['summary'], 200)}"
        report.problems.append(Problem("wrong", SPLITS, why))
    elif found["limits"]:
        report.problems.append(
            Problem("note", "llama.cpp splits otherwise", printable(found["summary"], 300))
        )
