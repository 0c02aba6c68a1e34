"""Reading untrusted files: within bounds, by plain relative names, and never through a link that leads out.

Everything that comes from a checkpoint, an artifact, a results folder or a job file is read through here.
Each function names the file in its error and allocates no more than the file's own size justifies.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantize.errors import BadInput, first_line
from quantize.units import MIB

#: tokenizer.json of 262,144 tokens takes 33 MB; an index of a model with 100,000 tensors, 10 MB
MAX_JSON_BYTES = 128 * MIB
#: brackets and commas: each costs Python at most some 120 bytes, so that parsing stays under 1 GB; the 33 MB
#: above have 1.9 million
MAX_JSON_ITEMS = 8_000_000
MAX_DEPTH = 64
MAX_YAML_BYTES = MIB
MAX_DIGITS = 400  # of a number in YAML, whose base 60 takes quadratic time
MAX_NAME_CHARACTERS = 1024
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HUB_SNAPSHOT = re.compile(r"((.*)/(?:models|datasets)--[^/]+)/snapshots/[^/]+(?:/.*)?")
#: where huggingface_hub 2 keeps what several repositories of one cache hold
_SHARED_BLOB = re.compile(r"/blobs/([0-9a-f]{2})/\1[0-9a-f]{62}")
#: files beside the weights that a tokenizer, template or model is read from
_SMALL = (".json", ".txt", ".jinja", ".model", ".tiktoken")
TEMPLATES = "additional_chat_templates"


def typed_path(text: str | Path) -> Path:
    """A path as typed, ``~`` expanded; it need not exist.

    Errors: BadInput where there is no such user, or no file can have that name.
    """
    try:
        path = Path(text).expanduser()
        path.is_dir()
    except RuntimeError:
        raise BadInput(f"{text}: there is no home folder of that user; write the full path") from None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{str(text)[:200]}: not a usable path ({getattr(error, 'strerror', None) or error}); check it"
        ) from None
    return path


def require_file(path: Path) -> None:
    """Errors: BadInput where it is missing or no regular file."""
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "is missing"
        raise BadInput(f"{path}: {what}; fetch it again")


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The whole file. Errors: BadInput where it is missing, unreadable, no regular file, or larger than
    ``limit``."""
    try:
        require_file(path)
        size = path.stat().st_size
        if size > limit:
            raise BadInput(
                f"{path}: has {size:,} bytes, more than the limit for such a file ({limit:,}); fetch it again"
            )
        with open(path, "rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """UTF-8, with or without a byte order mark. Errors: BadInput."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: not UTF-8 text (byte {error.start}); fetch the file again, or save it as UTF-8"
        ) from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Errors: BadInput where the file cannot be read within ``limit``, or is not a JSON object."""
    data = parse_json(read_bytes(path, limit), str(path))
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a JSON object; fetch the file again")
    return data


def parse_json(
    raw: bytes, where: str, items: int = MAX_JSON_ITEMS, hint: str = "fetch the file again"
) -> Any:
    """JSON of at most ``items`` entries and bounded depth, its strings valid Unicode. ``hint``: what to do.

    Errors: BadInput, naming ``where``.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > items:
        raise BadInput(f"{where}: more than {items:,} entries; {hint}")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise BadInput(f"{where}: nested deeper than {MAX_DEPTH} levels; {hint}") from None
    except ValueError as error:
        raise BadInput(f"{where}: not valid JSON ({error}); {hint}") from None
    if _deeper_than(data, MAX_DEPTH):
        raise BadInput(f"{where}: nested deeper than {MAX_DEPTH} levels; {hint}")
    if _ESCAPED_SURROGATE.search(raw):
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadInput(f"{where}: holds half a surrogate pair, which is not text; {hint}") from None
    return data


def _deeper_than(data: Any, depth: int) -> bool:
    level = [data]
    for _ in range(depth + 1):
        level = [
            value
            for container in level
            if isinstance(container, (dict, list))
            for value in (container.values() if isinstance(container, dict) else container)
            if isinstance(value, (dict, list))
        ]
        if not level:
            return False
    return True


def parse_yaml(text: str, where: str) -> Any:
    """YAML without aliases (a few lines of them unfold to gigabytes); dates stay text. Errors: BadInput,
    naming ``where``."""
    return parse_yaml_nodes(text, where)[0]


def parse_yaml_nodes(
    text: str, where: str, *, texts: bool = False, ignored: Sequence[str] = ()
) -> tuple[Any, Any]:
    """``parse_yaml``, and the tree of yaml's nodes, which know their lines. ``texts``: every scalar but null
    stays the text that it is (``no`` is Norwegian, 1.10 a version). ``ignored``: tags whose values are left
    out, as None."""
    import yaml

    if len(text) > MAX_YAML_BYTES:
        raise BadInput(f"{where}: longer than {MAX_YAML_BYTES:,} characters, the limit for such a file")

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            line = f"{where}: line {event.start_mark.line + 1}"
            if isinstance(event, yaml.events.AliasEvent):
                raise BadInput(f"{line}: YAML aliases (*name) are not supported; repeat the value")
            node: Any = super().compose_node(parent, index)
            if (
                node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
                and len(node.value) > MAX_DIGITS
            ):
                raise BadInput(f"{line}: a number of {len(node.value):,} characters")
            return node

    for tag in ignored:
        Loader.add_constructor(tag, lambda loader, node: None)
    left_out = ("timestamp", "bool", "int", "float", "value", "merge") if texts else ("timestamp",)
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in entries if tag.rpartition(":")[2] not in left_out]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise BadInput(f"{where}: {line}not valid YAML: {problem}") from None
    except RecursionError:
        raise BadInput(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except (
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:  # `!!bool x`: what a tag cannot make a value of
        raise BadInput(
            f"{where}: not valid YAML: a value does not fit its tag ({type(error).__name__})"
        ) from None
    if _deeper_than(data, MAX_DEPTH):
        raise BadInput(f"{where}: nested deeper than {MAX_DEPTH} levels")
    return data, node


def front_matter(text: str, where: str) -> dict[str, Any]:
    """The YAML block at the head of a model card, every scalar of it text; {} where there is none.

    Tabs count as two spaces, which cards on the Hub rely on. Errors: BadInput where it is not a YAML mapping.
    """
    if not text.startswith("---"):
        return {}
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3:
        return {}
    data, _ = parse_yaml_nodes(parts[1].replace("\t", "  "), where, texts=True)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BadInput(f"{where}: its YAML head is not a mapping of names to values")
    return data


def plain_name(name: object, where: str) -> str:
    """A relative path, from a manifest or an index, that stays in its folder. Errors: BadInput, naming
    ``where``."""
    good = (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME_CHARACTERS
        and not CONTROL.search(name)
        and "\\" not in name
        and not re.match(r"[A-Za-z]:", name)
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )
    if not good:
        raise BadInput(
            f"{where}: names the file {str(name)[:200]!r}; expected a plain relative path inside the folder"
        )
    assert isinstance(name, str)
    return name


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, which need not exist. Links are followed within ``folder`` and, in the Hub's cache,
    to its blobs.

    Errors: BadInput where the name, or a link on the way, leads anywhere else.
    """
    path = folder / plain_name(name, str(folder))
    # a string comparison settles the common case: nothing on the way is a link
    real_folder = os.path.realpath(folder)
    real = os.path.realpath(path)
    allowed = [real_folder]
    snapshot = _HUB_SNAPSHOT.fullmatch(real_folder)
    shared = False
    if snapshot:
        allowed.append(os.path.join(snapshot[1], "blobs"))
        shared = real.startswith(snapshot[2]) and bool(_SHARED_BLOB.fullmatch(real, len(snapshot[2])))
    if not shared and not any(real == root or real.startswith(root + os.sep) for root in allowed):
        raise BadInput(
            f"{folder}: {name} is a link to {real}, outside the "
            "folder; put the file itself there, or remove the link"
        )
    return path


def files_inside(folder: Path, pattern: str) -> Iterator[Path]:
    """What ``pattern`` (a glob of one level) finds in ``folder``, sorted, each held against ``inside``.
    Errors: BadInput."""
    for path in sorted(folder.glob(pattern)):
        yield inside(folder, path.name)


def check_links(folder: Path) -> None:
    """Errors: BadInput where a file of ``folder`` that a tokenizer, template or config may be read from, by
    us or by a library that is given the folder, is a link that leads out of it."""
    with os.scandir(folder) as entries:
        links = sorted(entry.name for entry in entries if entry.is_symlink())
    for name in links:
        if name.endswith(_SMALL) or name == TEMPLATES:
            inside(folder, name)
    if (folder / TEMPLATES).is_dir():
        for path in (folder / TEMPLATES).iterdir():
            inside(folder, f"{TEMPLATES}/{path.name}")


def user_cache() -> Path:
    """This program's own folder of this user, made where it is missing, closed to others. Errors: OSError."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def user_data() -> Path:
    """As ``user_cache``, for what must outlive a cache that is cleared. Errors: OSError."""
    return _user_folder("XDG_DATA_HOME", ".local/share")


def _user_folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or Path.home() / default) / "quantwright"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
