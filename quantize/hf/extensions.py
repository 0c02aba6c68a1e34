"""What the kernels that libraries compile on first use (optimum-quanto, GPTQModel) need around them.

torch's extension loader runs ``ninja`` from PATH and guards a build by a file called ``lock`` that it creates
and removes. A process killed while it builds leaves that file, and every later load then waits for it, for
ever.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from quantize.errors import first_line
from quantize.files import user_cache
from quantize.packages import importable
from quantize.quiet import quiet

#: A lock whose folder has not been written to for this long is abandoned: the longest single compiler call of
#: these kernels takes a minute or two, and ninja writes its log between calls.
STALE_AFTER_SECONDS = 15 * 60


def ensure_kernel_environment() -> None:
    """Put the interpreter's own ``bin`` on PATH and remove locks that builds killed half-way left behind.

    Call before the first use of a library that compiles kernels. Safe in several processes at once.
    """
    own = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", "")
    if own not in path.split(os.pathsep):
        os.environ["PATH"] = own + os.pathsep + path
    with _file_lock():
        for lock in stale_locks(extension_folders()):
            with contextlib.suppress(OSError):
                lock.unlink()


def keep_hub_caches() -> None:
    """Call before the first import of GPTQModel: its dependency tokenicer points HF_HOME and three more
    variables, where they are not set, at a folder under /tmp, for this process and all its children."""
    import huggingface_hub.constants  # noqa: F401 - reads the variables before they change

    unset = [
        name
        for name in ("HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_MODULES_CACHE")
        if name not in os.environ
    ]
    with quiet(), contextlib.suppress(ImportError):
        import tokenicer  # noqa: F401
    for name in unset:
        os.environ.pop(name, None)


def extension_folders() -> list[Path]:
    """Where extensions are built: torch's cache, GPTQModel's, and the folder inside optimum-quanto that this
    library uses."""
    folders = [Path.home() / ".cache" / "gptqmodel" / "torch_extensions"]
    configured = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = (
        Path(configured)
        if configured
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    )
    folders.append(cache)
    spec = find_spec("optimum")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folders.append(Path(location) / "quanto" / "library" / "extensions")
    return folders


def stale_locks(folders: list[Path]) -> list[Path]:
    """Lock files of builds that no living process is working on."""
    found = []
    for folder in folders:
        for lock in folder.rglob("lock") if folder.is_dir() else ():
            if _abandoned(lock):
                found.append(lock)
    return found


def _abandoned(lock: Path) -> bool:
    """torch keeps the file open while it builds, and a build keeps a compiler running with the folder's files
    on its command line or as its working directory. Where processes cannot be looked at, age decides."""
    import time

    try:
        newest = max(path.stat().st_mtime for path in [lock, *lock.parent.iterdir()])
    except OSError:
        return False
    age = time.time() - newest
    if age < 5:  # a build that has just begun and whose ninja is not up yet
        return False
    processes = Path("/proc")
    if not (processes / "self").exists():
        return age > STALE_AFTER_SECONDS
    folder, path = str(lock.parent.resolve()), str(lock.resolve())
    for process in processes.iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(process / "fd" / number) == path for number in os.listdir(process / "fd")):
                    return False
            with contextlib.suppress(OSError):
                if (
                    os.readlink(process / "cwd") == folder
                    or folder.encode() in (process / "cmdline").read_bytes()
                ):
                    return False
    return True


@contextlib.contextmanager
def _file_lock() -> Iterator[None]:
    """One process at a time; released by the kernel when its holder dies, unlike torch's."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    try:
        folder = user_cache()
        descriptor = os.open(
            folder / "kernels.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
    except (
        OSError
    ):  # no home that can be written: removing a lock twice does no harm, it is only looked for twice
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"waiting for another process that is preparing kernels ({folder / 'kernels.lock'})",
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def build_kernels() -> list[tuple[str, str]]:
    """Compile (or find compiled) what optimum-quanto and GPTQModel would compile on first use.

    Returns (kernel, "ready" or why not) for each; a library that is not installed is left out.
    """
    ensure_kernel_environment()
    results = []
    for name, library, build in (
        ("optimum-quanto: unpacking of 2 and 4 bits", "optimum.quanto", _build_quanto),
        ("GPTQModel: packing", "gptqmodel", _build_gptqmodel),
    ):
        if not importable(library):
            continue
        try:
            build()
            results.append((name, "ready"))
        except (RuntimeError, OSError, ImportError) as error:
            results.append((name, first_line(error)))
    return results


def _build_quanto() -> None:
    with quiet():
        import optimum.quanto  # noqa: F401  (registers its kernels)
        import torch

        torch.ops.quanto.unpack(torch.zeros(1, 1, dtype=torch.uint8), 4)


def _build_gptqmodel() -> None:
    with quiet():
        from gptqmodel.utils.cpp import load_pack_block_extension

        if load_pack_block_extension() is None:
            raise RuntimeError("not built; GPTQModel packs without it, more slowly")


def main() -> int:
    """Used by set-up. A kernel that cannot be built is reported and is not a failure: its recipes then build
    it or do without."""
    import time

    began = time.monotonic()
    for name, state in build_kernels():
        print(f"   {name}: {state}", flush=True)
    print(f"   {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
