"""The model card of a checkpoint read back from GGUF: name, licence, tags and origin survive the way there
and back."""

from pathlib import Path
from typing import Any

import yaml

from quantize.gguf.container.reader import GgufFile

#: general.* -> the key of a card's front matter from which llama.cpp's converter and ours fill it
CARD_KEYS = {
    "name": "name", "author": "author", "version": "version", "organization": "organization",
    "description": "description",
    "finetune": "finetune", "basename": "basename", "size_label": "size_label", "license": "license",
    "license.name": "license_name", "license.link": "license_link", "source.url": "url",
    "source.repo_url": "repo_url",
    "tags": "tags", "languages": "language",
}  # fmt: skip
MAX_CHARACTERS = 20_000  # of one entry: nothing longer was written by hand


def write_card(file: GgufFile, folder: Path) -> None:
    """Write README.md into ``folder``, or nothing where the file says nothing about its origin."""
    data: dict[str, Any] = {}
    for key, name in CARD_KEYS.items():
        value = file.kvs.get(f"general.{key}")
        texts = value if isinstance(value, list) else [value]
        if all(isinstance(text, str) for text in texts) and sum(map(len, texts)) <= MAX_CHARACTERS:
            data[name] = value
    count = file.kvs.get("general.base_model.count", 0)
    urls = [
        file.kvs.get(f"general.base_model.{n}.repo_url")
        for n in range(min(count, 100) if isinstance(count, int) else 0)
    ]
    bases = [url.removeprefix("https://huggingface.co/") for url in urls if isinstance(url, str)]
    if bases:
        data["base_model"] = bases
    if data:
        front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        text = (
            f"---\n{front}---\n\n# {data.get('name', file.path.stem)}\n\nRead back from the GGUF file "
            f"`{file.path.name}`.\n"
        )
        (folder / "README.md").write_text(text, encoding="utf-8", errors="replace")
