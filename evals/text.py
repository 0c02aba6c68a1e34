"""The text that is measured, and its token ids: made once, by the source's own tokenizer, for every artifact
alike."""

import hashlib
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from evals.protocols import TextProtocol
from evals.saved_ids import SavedIds
from evals.special import SpecialIds, of_gguf, of_source
from evals.subjects import Typed
from evals.windows import Tokenize, Windows, make_windows
from quantize.calibration.texts import held_out_text, read_text
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.runtimes.base import Runtime

HELD_OUT = "held-out"


class MeasuredText:
    """``ids``: ``source`` or ``runtime``. ``tokens``: only so many of the text's. ``cache``: folder that
    keeps the source's ids for other processes. ``made``: windows by protocol as typed."""

    def __init__(
        self,
        artifacts: Sequence[Typed],
        reference: Typed | None,
        ids: str,
        tokens: int | None,
        cache: Path | None,
        say: Callable[[str], None],
    ):
        self.artifacts = artifacts
        self.reference = reference
        self.ids = ids
        self.tokens = tokens
        self.cache = cache
        self.body = ""
        self.made: dict[str, Windows] = {}
        self._say = say
        self._said: set[str] = set()
        self._tokenizers: dict[Path, SourceTokenizer] = {}

    def read(self, text: str | Path | None) -> str:
        """Read a file, or without one the demo's held-out text; returns what to call it. Errors: BadInput."""
        if text is not None and str(text) != HELD_OUT:
            folders = (typed.tokenizer_folder for typed in (self.reference, *self.artifacts) if typed)
            found = read_text(Path(text), next(filter(None, folders), None))
            self.body, name = found.body, str(text)
            if found.read_as:
                self._say(f"{text}: read as {found.read_as}")
                name += f" (read as {found.read_as})"
        else:
            self.body = held_out_text()
            release = f"pydoc_data.topics of Python {platform.python_version()}"
            digest = hashlib.sha256(self.body.encode()).hexdigest()
            self._say(
                f"text: the demo's held-out text, {release}, sha256 "
                f"{digest[:12]} (it differs by Python release)"
            )
            name = f"{HELD_OUT} ({release})"
        self._warn_of_calibration()
        return name

    def _warn_of_calibration(self) -> None:
        digest = hashlib.sha256(self.body.encode()).hexdigest()
        for typed in self.artifacts:
            record = typed.manifest.calibration if typed.manifest else None
            hashes = {record.sha256, *(part.sha256 for part in record.parts)} if record else set()
            if record and digest in hashes:
                self._say(
                    f"warning: {typed.name} was calibrated on this same text ({record.source}), "
                    "so its numbers here are too good; evaluate on another text"
                )

    def tokenizer(self, typed: Typed) -> SourceTokenizer | None:
        """The source's, of the reference if there is one, so that all share it; None with runtime ids or
        where it is missing."""
        if self.ids != "source":
            return None
        for candidate in (self.reference, typed, *self.artifacts):
            folder = candidate.tokenizer_folder if candidate else None
            if folder is not None:
                if folder not in self._tokenizers:
                    self._tokenizers[folder] = SourceTokenizer.open(folder)
                return self._tokenizers[folder]
        self._say_once(
            f"{typed.name}: its source's tokenizer was not found (give "
            "--reference): the runtime's own tokenizer makes the token ids"
        )
        return None

    def windows(self, protocol: TextProtocol, runtime: Runtime, typed: Typed) -> Windows:
        """Made once with source ids; with runtime ids, again by every runtime's own tokenizer."""
        tokenizer = self.tokenizer(typed)
        if tokenizer is not None and protocol.requested in self.made:
            return self.made[protocol.requested]
        fitted = protocol.fit(runtime.context, self._say_once)
        encode: Tokenize = runtime.tokenize
        if tokenizer is not None:
            encode = SavedIds(tokenizer, self.cache) if self.cache else tokenizer.encode
        windows = make_windows(
            fitted,
            self.body,
            encode,
            ids="source" if tokenizer else "runtime",
            prefix=self.special(typed).prefix if fitted.family == "lmeval-wikitext" else None,
            tokens=self.tokens,
        )
        for remark in windows.remarks:
            self._say_once(f"{fitted.name}: {remark}")
        if tokenizer is not None:
            self.made[protocol.requested] = windows
        return windows

    def special(self, typed: Typed) -> SpecialIds:
        """Of the tokenizer that makes ``typed``'s token ids; what ends generation as the reference has it,
        else ``typed``."""
        tokenizer = self.tokenizer(typed)
        models = [self.reference, typed] if tokenizer else [typed]
        if tokenizer is None and typed.gguf:
            return of_gguf(typed.gguf)
        if tokenizer is None and typed.tokenizer_folder:
            tokenizer = SourceTokenizer.open(typed.tokenizer_folder)  # which the runtime opens too
        if tokenizer is None:
            return SpecialIds()
        return of_source(tokenizer, [model.path for model in models if model and model.path.is_dir()])

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._say(message)
