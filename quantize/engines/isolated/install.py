"""Making, checking and removing the environments of engines.

A killed installation leaves a folder without a marker, which counts for nothing and which the next one, of
whatever engine, removes.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantize.disk_errors import disk_errors
from quantize.engines.isolated.call import last_words
from quantize.engines.isolated.environment import (
    BORROWED,
    MARKER,
    Environment,
    alone_in,
    borrowed,
    check_possible,
    environments,
    finished,
    folders,
    lock_of,
    packages_of,
    place_of,
    python_of,
    torch_at_hand,
)
from quantize.engines.isolated.known import IsolatedEngine
from quantize.errors import StepFailed
from quantize.into_place import remove
from quantize.locks import abandoned
from quantize.process import isolated_module, tied_command
from quantize.progress import progress_bar
from quantize.terminal import log, shell

REQUIREMENTS, LOG = "requirements.txt", "install.log"
#: what of the environment's variables would put packages elsewhere
MISLEADING = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
#: for which the locks have sha256
HASHED = ("linux", "x86_64", "cpython", (3, 11))


def install(engine: IsolatedEngine, installer: str = "auto", progress: bool = True) -> Environment:
    """The engine's environment, made where it is missing. ``installer``: uv, pip, or ``auto``: uv where it is
    on the path. Two at once: the second waits for the first and finds what that made.

    Errors: Unsupported where this Python or torch does not fit; StepFailed where a package cannot be had.
    """
    check_possible(engine)
    folder = place_of(engine)
    _sweep(folder)
    with alone_in(folder):
        found = finished(engine, folder)
        if found is not None:
            return found
        remove(folder)  # what was left by one that was killed
        begun = time.monotonic()
        log(f"{engine.name}: {len(engine.pins)} packages into {folder}")
        try:
            with disk_errors(folder):
                _make(engine, folder, installer, progress)
        except BaseException:
            remove(folder)
            lock_of(folder).unlink(missing_ok=True)
            raise
        log(f"{engine.name}: installed in {time.monotonic() - begun:.0f} s")
        made = finished(engine, folder)
        assert made is not None
        return made


def _make(engine: IsolatedEngine, folder: Path, installer: str, progress: bool) -> None:
    uv = shutil.which("uv") if installer in ("auto", "uv") else None
    if installer == "uv" and uv is None:
        raise StepFailed(f"{engine.name}: uv is not on the path; install it, or leave --installer out")
    if uv is None and importlib.util.find_spec("pip") is None:
        raise StepFailed(f"{engine.name}: neither uv nor pip is here; install one of them")
    folder.mkdir(mode=0o700)
    (folder / REQUIREMENTS).write_text(_requirements(engine), encoding="utf-8")
    _run(engine, folder, isolated_module("venv", "--without-pip", str(folder)), "venv", False)
    if engine.torch:
        _borrow(folder)
    common = [
        "--no-deps",
        *(["--require-hashes"] if _hashed(engine) else []),
        "-r",
        str(folder / REQUIREMENTS),
    ]
    if uv is not None:
        command = [uv, "pip", "install", "--python", str(python_of(folder)), *common]
        _run(engine, folder, command, "uv", progress)
    else:
        command = isolated_module("pip", "install", "--ignore-installed", "--no-input")
        command += ["--disable-pip-version-check", "--no-warn-script-location", *common]
        _run(engine, folder, [*command, "--target", str(packages_of(folder))], "pip", progress)
    problems = list(problems_of(engine, folder, thorough=False))
    if problems:
        raise StepFailed(f"{engine.name}: {problems[0]}")
    said = {
        "engine": engine.name,
        "lock": engine.sha256,
        "versions": engine.pins,
        "torch": torch_at_hand() if engine.torch else "",
        "installer": "uv" if uv else "pip",
    }
    new = folder / f"{MARKER}.new"
    new.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    os.replace(new, folder / MARKER)


def _hashed(engine: IsolatedEngine) -> bool:
    here = (sys.platform, os.uname().machine, sys.implementation.name, sys.version_info[:2])
    return here == HASHED and "--hash=" in engine.lock_text


def _requirements(engine: IsolatedEngine) -> str:
    if _hashed(engine):
        return engine.lock_text
    if "--hash=" in engine.lock_text:
        log(f"{engine.name}: no sha256 are known for this Python and system: packages go by version alone")
    return "".join(f"{name}=={version}\n" for name, version in engine.pins.items())


def _borrow(folder: Path) -> None:
    """Links to the torch at hand, outside the environment's own packages, which an installer may remove."""
    place = folder / BORROWED
    place.mkdir()
    for name, path in borrowed():
        if not (place / name).exists():
            (place / name).symlink_to(path.resolve())  # by another way than today's, it is there tomorrow
    (packages_of(folder) / "quantwright_borrowed.pth").write_text(f"{place}\n", encoding="utf-8")


def _run(engine: IsolatedEngine, folder: Path, command: list[str], what: str, progress: bool) -> None:
    """Errors: StepFailed with what the installer said last."""
    # on the disk of the environment, and removed with it
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONNOUSERSITE": "1"}
    for name in MISLEADING:
        environment.pop(name, None)
    with (
        open(folder / LOG, "a", encoding="utf-8") as file,
        progress_bar(engine.name, len(engine.pins), "packages", progress) as advance,
        subprocess.Popen(
            tied_command(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=folder,
        ) as process,
    ):
        file.write(f"$ {shell(*command)}\n")
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if line.startswith(("Collecting ", " + ")):
                    advance(1)
        except BaseException:
            process.kill()
            raise
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        words = last_words(folder / LOG, prefer="ERROR: ")
        raise StepFailed(
            f"{engine.name}: {what} failed (exit code {process.returncode}): {words}; nothing was installed: "
            "check that the package index can be reached, and try again"
        )


def problems_of(engine: IsolatedEngine, folder: Path, thorough: bool = True) -> Iterator[str]:
    """What is wrong with an environment: packages that are missing or of other versions than the lock's;
    ``thorough``: files that are not what was installed."""
    code = _INSPECT if thorough else _INSPECT.replace("THOROUGH = True", "THOROUGH = False")
    command = tied_command(str(python_of(folder)), "-I", "-c", code)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        yield f"its Python does not run (exit code {done.returncode}): {done.stderr.strip()[-300:]}"
        return
    for name, version in engine.pins.items():
        there = said["versions"].get(name.replace("_", "-"))
        if there != version:
            yield f"{name} is {'missing' if there is None else there}, and the lock says {version}"
    if engine.torch and said["versions"].get("torch") != torch_at_hand():
        yield f"torch is {said['versions'].get('torch', 'missing')}, and the one at hand {torch_at_hand()}"
    for path in said["changed"]:
        yield f"{path} is not what was installed"


#: run in the environment: versions of what is there, and files that differ from their RECORD
_INSPECT = """
import base64, hashlib, json, re
from importlib import metadata
THOROUGH = True
versions, changed = {}, []
for found in metadata.distributions():
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    versions[name] = found.version
    if not THOROUGH or name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-")):
        continue
    for file in found.files or ():
        if file.hash is None or file.hash.mode != "sha256" or file.parts[0] == "..":
            continue
        if file.suffix == ".pyc":  # numpy's wheel brings one, which Python makes again
            continue
        try:
            digest = hashlib.sha256(file.locate().read_bytes()).digest()
        except OSError:
            digest = b""
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
print(json.dumps({"versions": versions, "changed": changed}))
"""


@dataclass(frozen=True)
class Found:
    """A folder of an environment: ``current``: whether this Python and torch use it; ``finished``: else it
    was left by an installation that was killed, or one is at work."""

    folder: Path
    current: bool
    finished: bool

    @property
    def size_bytes(self) -> int:
        return sum(
            entry.stat(follow_symlinks=False).st_size
            for root, _, files in os.walk(self.folder)
            for entry in (Path(root, name) for name in files)
        )


def found(engine: IsolatedEngine) -> list[Found]:
    here = place_of(engine)
    return [
        Found(folder, folder == here, finished(engine, folder) is not None) for folder in folders(engine.name)
    ]


def uninstall(engine: IsolatedEngine) -> list[Path]:
    """Every environment of the engine, for whatever Python; waits for who runs in one."""
    gone = []
    for folder in folders(engine.name):
        with alone_in(folder):
            (folder / MARKER).unlink(missing_ok=True)
            remove(folder)
            lock_of(folder).unlink(missing_ok=True)
        gone.append(folder)
    return gone


def _sweep(mine: Path) -> None:
    """Remove what installations left that were killed."""
    for folder in environments().iterdir():
        if folder == mine or not folder.is_dir() or (folder / MARKER).exists():
            continue
        try:
            with abandoned(lock_of(folder)):
                if not (folder / MARKER).exists():
                    remove(folder)
                    lock_of(folder).unlink(missing_ok=True)
        except OSError:
            continue
