"""llamafile: one file that is a program for six systems and holds the model, as a zip that is appended to it.

Source: llamafile's docs on creating llamafiles, and zipalign(1): what is stored (not compressed) begins at a
multiple of 65,536 bytes, so that it can be mapped into memory.
"""

import shutil
import zipfile
from pathlib import Path

from quantize.errors import BadInput
from quantize.terminal import shell
from serving.target import Exported, Request, gguf_context, gguf_name, safe_name

ALIGNMENT = 65_536
_FIXED = 30  # bytes of a local header before the name
_ZIP64 = 20  # bytes of its field for sizes above 4 GiB
_DATE = (1980, 1, 1, 0, 0, 0)  # equal for equal content
_EXECUTABLES = (b"MZ", b"\x7fELF", b"#!", b"\xcf\xfa\xed\xfe")
FETCH = "fetch a llamafile program (github.com/mozilla-ai/llamafile, its releases) and give it as --binary"


def llamafile(request: Request) -> Exported:
    """Errors: Unsupported where the artifact is no GGUF file; BadInput where ``binary`` is no program."""
    path, gguf = request.gguf("llamafile")
    name = gguf_name(request, path)
    context = request.context or gguf_context(gguf.kvs)
    arguments = ["-m", name, "--host", "127.0.0.1", "--port", str(request.port)]
    arguments += ["-c", str(context)] if context else []
    listed = "\n".join([*arguments, "..."]) + "\n"
    out = f"{safe_name(request.name)}.llamafile"
    if request.binary is None:
        made = Exported(texts={".args": listed}, links={name: path})
        made.notes.append(f"this is what goes into a llamafile, not one: {FETCH}")
        made.start = shell("zipalign", "-j0", out, name, ".args")
        return made
    binary = request.binary
    check_program(binary)
    made = Exported(scripts=(out,), start=shell(f"./{out}"))
    made.built[out] = lambda target: build(binary, target, path, name, listed)
    return made


def check_program(path: Path) -> None:
    """Errors: BadInput where it is no executable file."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror or error}); give --binary a llamafile"
        ) from None
    if not head.startswith(_EXECUTABLES):
        raise BadInput(f"{path}: is not a program; {FETCH}")


def build(binary: Path, out: Path, gguf: Path, name: str, arguments: str) -> None:
    """A copy of ``binary`` with the two files behind it. What a zip at its end holds already stays.

    Errors: BadInput where it holds files of these names, or a zip that cannot be read; OSError.
    """
    shutil.copyfile(binary, out)
    try:
        with zipfile.ZipFile(out, "a", allowZip64=True) as archive:
            taken = {name, ".args"} & set(archive.namelist())
            if taken:
                raise BadInput(
                    f"{binary}: holds {min(taken)} already; give --binary a llamafile without a model"
                )
            _store(archive, name, gguf)
            _store(archive, ".args", arguments)
    except zipfile.BadZipFile as error:
        raise BadInput(f"{binary}: the zip at its end cannot be read ({error}); fetch it again") from None
    out.chmod(0o755)


def _store(archive: zipfile.ZipFile, name: str, content: Path | str) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_STORED
    entry.external_attr = 0o644 << 16
    file = archive.fp
    assert file is not None
    begin = archive.start_dir + _FIXED + len(name.encode()) + _ZIP64
    file.seek(archive.start_dir)
    file.write(bytes(-begin % ALIGNMENT))
    archive.start_dir = file.tell()
    with archive.open(entry, "w", force_zip64=True) as stored:
        if isinstance(content, str):
            stored.write(content.encode())
        else:
            with open(content, "rb") as source:
                shutil.copyfileobj(source, stored, 1 << 20)
