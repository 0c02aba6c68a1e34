"""Links in what a stranger made: no file from outside a checkpoint, an adapter or an artifact gets in."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.errors import BadInput
from quantize.files import inside
from quantize.sources.adapter import open_adapter
from quantize.sources.opening import open_checkpoint


@pytest.fixture
def model(demo_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "model"
    shutil.copytree(demo_checkpoint, folder)
    (tmp_path / "home" / "token").write_text("hf_TOKEN")
    return folder


@pytest.mark.parametrize(
    "name",
    ["merges.txt", "chat_template.jinja", "vocab.json", "generation_config.json", "config.json",
    "tokenizer.json",
     "processor_config.json", "additional_chat_templates/tool.jinja"],
)  # fmt: skip
def test_a_link_out_of_a_checkpoint_is_refused_by_name(name: str, model: Path) -> None:
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(model.parent / "token")
    with pytest.raises(BadInput, match=rf"{name} is a link to .*token, outside the folder"):
        open_checkpoint(model)


def test_a_folder_of_templates_that_is_a_link_is_refused(model: Path) -> None:
    (model / "additional_chat_templates").symlink_to(model.parent)
    with pytest.raises(BadInput, match="additional_chat_templates is a link"):
        open_checkpoint(model)


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/model.safetensors", "sub/../../x", "C:x", ""])
def test_shards_of_an_index_lie_in_the_folder(name: str, model: Path) -> None:
    names = list(open_checkpoint(model).tensors)
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, name)})
    )
    with pytest.raises(BadInput, match="plain relative path"):
        open_checkpoint(model)


def test_links_that_people_have_work(model: Path, tmp_path: Path) -> None:
    """A folder that is a link, links within the folder, and a link that is nothing we read."""
    (model / "tokenizer_config.json").rename(model / "real.json")
    (model / "tokenizer_config.json").symlink_to("real.json")
    (model / "data").symlink_to("/")
    (tmp_path / "short").symlink_to(model)
    assert open_checkpoint(tmp_path / "short").companion_files


def test_the_hub_caches_layouts(model: Path, tmp_path: Path) -> None:
    """blobs/<etag> of the repository, or a link from there to the store that repositories share: blobs/<2
    digits>/<xet hash>."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        shared = tmp_path / "hub" / "blobs" / f"{number:02x}" / f"{number:02x}".ljust(64, "0")
        shared.parent.mkdir(parents=True)
        shutil.copy(path, shared if number % 2 else blobs / str(number))
        if number % 2:
            (blobs / str(number)).symlink_to(os.path.relpath(shared, blobs))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert open_checkpoint(snapshot).tensors
    for place in ("blobs/token", "blobs/00/token", "other"):
        target = tmp_path / "hub" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("hf_TOKEN")
        (snapshot / "merges.txt").unlink(missing_ok=True)
        (snapshot / "merges.txt").symlink_to(target)
        with pytest.raises(BadInput, match="outside the folder"):
            inside(snapshot, "merges.txt")


def test_a_link_out_of_an_adapter_is_refused(model: Path, make_adapter: Callable[[Path], Path]) -> None:
    folder = make_adapter(model)
    open_adapter(folder, open_checkpoint(model))
    for name in ("tokenizer.json", "adapter_config.json", "adapter_model.safetensors"):
        spoilt = folder.with_name(f"spoilt-{name}")
        shutil.copytree(folder, spoilt)
        (spoilt / name).unlink(missing_ok=True)
        (spoilt / name).symlink_to(model.parent / "token")
        with pytest.raises(BadInput, match="outside the folder"):
            open_adapter(spoilt, open_checkpoint(model))


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[[Path], Path]:
    """A LoRA of rank 1 on one matrix of a checkpoint."""

    def make(base: Path) -> Path:
        import numpy as np
        from safetensors.numpy import save_file

        folder = tmp_path / "adapter"
        folder.mkdir()
        name, info = next(
            (n, i) for n, i in open_checkpoint(base).tensors.items() if n.endswith("q_proj.weight")
        )
        module = f"base_model.model.{name.removesuffix('.weight')}"
        parts = {
            "lora_A": np.zeros((1, info.shape[1]), np.float32),
            "lora_B": np.zeros((info.shape[0], 1), np.float32),
        }
        save_file(
            {f"{module}.{part}.weight": data for part, data in parts.items()},
            folder / "adapter_model.safetensors",
        )
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1})
        )
        return folder

    return make
