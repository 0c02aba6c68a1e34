"""``quantwright inspect``: what every method makes, and models of a Hub without their weights."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub, running

from quantize.artifact.artifact import Artifact
from quantize.inspection.description import describe
from quantize.inspection.opening import look


@pytest.mark.parametrize(
    ("short", "kind", "needs"),
    [
        ("bfloat16", "BF16", ""),
        ("gguf-q4_k_m", "Q4_K", ""),
        ("gguf-q8_0", "Q8_0", ""),
        ("rtn-int4", "int4 g128", ""),
        ("rtn-int3:group_size=64", "int3 g64", ""),
        ("rtn-int4:format=awq", "int4 g128", ""),
        ("ct-fp8-dynamic", "F8_E4M3", ""),
        ("ct-int8", "int8", ""),
        ("ct-w4a16", "int4 g128", ""),
        ("ct-w8a16", "int8", ""),
        ("ct-nvfp4a16", "fp4 g16", ""),
        ("ct-mxfp4a16", "fp4 g32", ""),
        ("quanto-int8", "int8", "optimum.quanto"),
        ("quanto-int4", "int4 g128", "optimum.quanto"),
        ("bnb-nf4:double_quant=true", "nf4 double", "bitsandbytes"),
        ("bnb-int8", "int8", "bitsandbytes"),
        ("torchao-int8", "int8", "torchao"),
        ("torchao-int8:group_size=64", "int8 g64", "torchao"),
    ],
)
def test_of_what_we_make_as_much_is_found_as_the_manifest_says(
    made: Callable[[str], Artifact], short: str, kind: str, needs: str
) -> None:
    if needs:
        pytest.importorskip(needs)
    artifact = made(short)
    (artifact.folder / "manifest.json").rename(artifact.folder / "hidden")
    try:
        alone = describe(look(str(artifact.folder)))
    finally:
        (artifact.folder / "hidden").rename(artifact.folder / "manifest.json")
    ours = describe(look(str(artifact.folder)))
    assert ours.method == artifact.manifest.recipe_short
    matrices = {s.name: s for s in alone.types}
    assert kind in matrices
    assert alone.weights == artifact.manifest.source.parameters
    assert alone.bits_per_weight == pytest.approx(artifact.manifest.bits_per_weight, rel=1e-9)
    assert alone.bits_per_weight == ours.bits_per_weight
    assert not [problem for problem in alone.problems if problem.level == "wrong"]
    assert set(alone.loads_in) & set(artifact.manifest.loads_in)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running() as server:
        yield server


def inspect(
    hub: LoopbackHub, home: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **hub.environment(home), "HF_TOKEN": "hf_" + "s" * 20, **environment}
    command = [sys.executable, "-m", "quantize.cli", "inspect", *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def same(remote: dict[str, Any], local: Path) -> None:
    here = json.loads(json.dumps(describe(look(str(local))).document()))
    for name in ("model", "commit"):
        remote.pop(name), here.pop(name)
    assert remote == here


def test_a_folder_in_shards_by_ranges_and_a_connection_that_breaks(
    hub: LoopbackHub, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    plain, sharded = make_checkpoint(num_hidden_layers=2), tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(sharded, max_shard_size="4MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / name, sharded / name)
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(shards) > 1
    commit = hub.fill("org/small", sharded)
    hub.cut_after = [5, 700]  # two headers do not come whole
    found = document(inspect(hub, tmp_path / "hf", "org/small"))
    assert found["commit"] == commit
    same(found, sharded)
    of_weights = [each for each in hub.asked if each[1].endswith(".safetensors") and each[0] == "GET"]
    assert {path.rpartition("/")[2] for _, path, _ in of_weights} == set(shards)
    assert all(asked.startswith("bytes=") for _, _, asked in of_weights)
    weights = sum((sharded / name).stat().st_size for name in shards)
    assert sum(path.stat().st_size for path in sharded.iterdir()) - weights / 2 > hub.sent_bytes
    again = document(inspect(hub, tmp_path / "hf", f"org/small@{commit}"))
    assert again["tensors"] == found["tensors"]


def test_one_file_of_a_gguf_repository(
    hub: LoopbackHub, made: Callable[[str], Artifact], tmp_path: Path
) -> None:
    files, card = {}, b"---\nlicense: mit\n---\n"
    for short in ("gguf-q4_k_m", "gguf-q8_0"):
        path = made(short).gguf
        assert path is not None
        files[f"small-{short[5:].upper()}.gguf"] = path.read_bytes()
    hub.fill("org/small-GGUF", {**files, "README.md": card})
    found = document(inspect(hub, tmp_path / "hf", "org/small-GGUF:Q4_K_M"))
    assert found["license"] == "mit"
    assert found["method"] == "gguf-q4_k_m"
    local = tmp_path / "local"
    local.mkdir()
    (local / "README.md").write_bytes(card)
    (local / "small.gguf").write_bytes(files["small-Q4_K_M.gguf"])
    same(found, local / "small.gguf")
    assert hub.sent_bytes < sum(map(len, files.values())) / 2
    several = inspect(hub, tmp_path / "hf", "org/small-GGUF")
    assert several.returncode == 2
    assert "org/small-GGUF:Q4_K_M" in several.stderr
    hub.fill("org/one-GGUF", {"one-Q8_0.gguf": files["small-Q8_0.gguf"]})
    assert document(inspect(hub, tmp_path / "hf", "org/one-GGUF"))["method"] == "gguf-q8_0"


def test_what_a_hub_refuses_and_what_is_in_the_cache(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    hub.fill("org/small", source)
    missing = inspect(hub, home, "org/none")
    assert (missing.returncode, "org/none: neither a local folder" in missing.stderr) == (2, True)
    revision = inspect(hub, home, "org/small@other")
    assert (revision.returncode, "no revision 'other'" in revision.stderr) == (2, True)
    offline = inspect(hub, home, "org/small", HF_HUB_OFFLINE="1")
    assert (offline.returncode, "cannot be reached" in offline.stderr) == (1, True)
    assert document(inspect(hub, home, "org/small"))["weights"] > 0
    hub.ranges = False  # what a proxy that ignores ranges does: no weights are taken for headers
    whole = inspect(hub, home, "org/small")
    assert (whole.returncode, "where a part was asked for" in whole.stderr) == (1, True)
    hub.ranges, hub.statuses = True, [503, 503, 503]
    busy = inspect(hub, home, "org/small")
    assert (busy.returncode, "the Hub cannot be reached" in busy.stderr) == (1, True)
    assert all("Traceback" not in done.stderr for done in (missing, revision, offline, whole, busy))
    assert all(
        "s" * 20 not in done.stderr + done.stdout for done in (missing, revision, offline, whole, busy)
    )
    fetched = {**os.environ, **hub.environment(home)}
    code = "import huggingface_hub as h; h.snapshot_download('org/small')"
    subprocess.run([sys.executable, "-c", code], env=fetched, check=True, timeout=60, capture_output=True)
    asked = len(hub.asked)
    assert document(inspect(hub, home, "org/small", HF_HUB_OFFLINE="1"))["license"] is None
    assert len(hub.asked) == asked
