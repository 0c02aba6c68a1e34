"""What published files are called."""

from pathlib import Path

import pytest
from sample_artifact import make_artifact

from quantize.errors import BadInput
from reports.naming import GENERIC, as_converted, before_naming, named, own_name


@pytest.mark.parametrize(
    "folder",
    ["checkpoint", "checkpoint-1500", "Model", "output", "out", "merged", "final", "best", "results_2", "hf"],
)
def test_such_folders_say_nothing_of_a_model(folder: str) -> None:
    with pytest.raises(BadInput, match="--name"):
        own_name(folder, None, None, None)
    assert own_name(folder, None, "org/Small-1B", None) == "Small-1B"
    assert own_name(folder, f"org/{folder}", None, None) is None, "a model of the Hub is called so"
    assert own_name(folder, None, "org/Small-1B", "Other") == "Other"


@pytest.mark.parametrize("folder", ["SmolLM2-135M", "my-model", "checkpoints-of-mine", "small", "model7b"])
def test_names_of_models(folder: str) -> None:
    assert own_name(folder, None, None, None) is None or GENERIC.fullmatch(folder)


@pytest.mark.parametrize("name", ["", "a/b", "../up", "-x", "ü", "a" * 97, "a b", "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(BadInput, match="--name"):
        own_name("small", None, None, name)


@pytest.mark.parametrize(
    ("before", "own", "after"),
    [
        ("Checkpoint-4.2M-Q4_K_M.gguf", "Demo", "Demo-4.2M-Q4_K_M.gguf"),
        ("Checkpoint-135M-Q8_0.gguf", "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct-Q8_0.gguf"),
        ("Model-8x7B-Instruct-v0.1-IQ4_XS.gguf", "Mix", "Mix-IQ4_XS.gguf"),
        ("Out-1.1B-BF16-00001-of-00003.gguf", "Big", "Big-1.1B-BF16-00001-of-00003.gguf"),
        ("model.safetensors", "Demo", "model.safetensors"),
    ],
)
def test_files_are_called_as_llamacpp_calls_them(tmp_path: Path, before: str, own: str, after: str) -> None:
    artifact = make_artifact(tmp_path / "a")
    entry = next(iter(artifact.manifest.files.values()))
    artifact.manifest = artifact.manifest.model_copy(update={"files": {before: entry}})
    found = named(artifact, own)
    assert list(found.manifest.files) == [after]
    assert before_naming(found, after) == before
    assert as_converted(found).digest == artifact.digest
    assert (found.digest == artifact.digest) == (before == after)
    assert named(artifact, None) is artifact
