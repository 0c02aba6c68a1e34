"""A checkpoint that brings Python of its own: ``evil.py`` leaves a mark beside the folder where it runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

EVIL = """
open({mark!r}, "a").write("ran ")
import transformers as t
class Config(t.LlamaConfig):
    model_type = "evilmodel"
class LlamaForCausalLM(t.LlamaForCausalLM):
    config_class = Config
class Model(LlamaForCausalLM):
    pass
class Tokenizer(t.PreTrainedTokenizerFast):
    pass
"""


def copy_with_code(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``plain`` with evil.py in it, as ``tmp_path / "model"``. The cache of dynamic modules is the test's
    own."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = tmp_path / "model"
    shutil.copytree(plain, made)
    (made / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "ran")))
    return made


def ran(folder: Path) -> bool:
    return (folder.parent / "ran").exists()


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**config, **values}))
