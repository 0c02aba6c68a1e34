"""Upload through the real huggingface_hub client to a Hub on the loopback device, and back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub, running
from sample_artifact import make_artifact

from quantize.artifact.artifact import Artifact, Verification

TOKEN = "hf_" + "plantedsecret" * 3


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running() as server:
        server.token = TOKEN
        yield server


def publish(
    hub: LoopbackHub, home: Path, *args: str | Path, repo: str = "me/small", **changes: str
) -> subprocess.CompletedProcess[str]:
    log = home / "log.txt"
    environment = {
        **os.environ,
        **hub.environment(home / "hf"),
        "HF_TOKEN": TOKEN,
        "QUANTWRIGHT_LOG": str(log),
    }
    command = [sys.executable, "-m", "quantize.cli", "publish", *map(str, args), "--repo", repo]
    return subprocess.run(command, capture_output=True, text=True, env=environment | changes, timeout=120)


def snapshot(hub: LoopbackHub, home: Path, repo: str = "me/small", revision: str = "main") -> Path:
    code = (
        "import sys, huggingface_hub as h; "
        "print(h.snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3]))"
    )
    environment = {**os.environ, **hub.environment(home / "pulled-cache")}
    target = home / "pulled"
    command = [sys.executable, "-c", code, repo, revision, str(target)]
    subprocess.run(command, check=True, env=environment, timeout=60, capture_output=True)
    return target


def last(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }


def test_upload_is_what_the_dry_run_writes_and_comes_back_equal(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    done = publish(hub, tmp_path, folder, "--private", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["url"].startswith(hub.url)
    written = contents(tmp_path / "out")
    assert hub.repositories["me/small"].at("main") == (hub.repositories["me/small"].branches["main"], written)
    assert sorted(written) == document["files"]
    assert hub.visibility["me/small"] == "private"
    assert [title for _, title, _ in hub.commits] == ["Quantized by Quantwright: gguf-q4_k_m"]
    pulled = snapshot(hub, tmp_path)
    assert contents(pulled) == written
    artifact = Artifact.load(pulled)
    artifact.check_files()
    assert artifact.digest == Artifact.load(folder).digest


def test_no_token_is_written_anywhere(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    outputs = []
    for change in ("good", "bad", "card", "unreachable"):
        hub.token = TOKEN if change != "bad" else "hf_other"
        hub.card_errors = [f"the token {TOKEN} is in it"] if change == "card" else []
        more = {"HF_ENDPOINT": "http://127.0.0.1:9"} if change == "unreachable" else {}
        done = publish(hub, tmp_path, folder, "--json", "-o", tmp_path / f"out-{change}", **more)
        outputs += [done.stdout, done.stderr]
    assert TOKEN in hub.tokens
    for text in outputs:
        assert "plantedsecret" not in text
    for name, body in contents(tmp_path).items():
        assert b"plantedsecret" not in body, name
    for files in hub.repositories["me/small"].commits.values():
        assert b"plantedsecret" not in b"".join(files.values())


def test_a_dry_run_asks_nobody(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    done = publish(hub, tmp_path, folder, "--dry-run", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert hub.asked == []
    assert (tmp_path / "out" / "README.md").is_file()


def test_one_commit_an_artifact_later_ones_beside_and_what_a_person_wrote_stays(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    first = make_artifact(tmp_path / "q4").folder
    assert publish(hub, tmp_path, first).returncode == 0
    repository = hub.repositories["me/small"]
    files = dict(repository.commits[repository.branches["main"]])
    card = files["README.md"].decode()
    mine = "<!-- keep -->\n## My own words\n\nBe careful.\n<!-- /keep -->"
    more = "<!-- keep -->\nat the end of Use\n<!-- /keep -->"
    card = card.replace("## Files\n", f"{mine}\n\n## Files\n")
    use = card.index("## Use")
    after = card.index("\n## ", use)
    files["README.md"] = f"{card[:after]}\n{more}\n{card[after:]}".encode()
    repository.add({**files, "photo.png": b"mine"})
    second, third = (make_artifact(tmp_path / n, f"gguf-{n}").folder for n in ("q8_0", "q6_k"))
    done = publish(hub, tmp_path, second, third)
    assert done.returncode == 0, done.stderr
    assert [title for _, title, _ in hub.commits[1:]] == [
        "Quantized by Quantwright: gguf-q8_0",
        "Quantized by Quantwright: gguf-q6_k",
    ]
    found = repository.commits[repository.branches["main"]]
    assert set(found) == {
        "README.md", "photo.png", "small-Q4_K_M.gguf", "small-Q8_0.gguf", "small-Q6_K.gguf",
        "manifests/gguf-q4_k_m.json", "manifests/gguf-q8_0.json", "manifests/gguf-q6_k.json",
    }  # fmt: skip
    card = found["README.md"].decode()
    assert card.count(mine) == card.count(more) == 1
    assert card.index(mine) < card.index("## Files") < card.index("## Use") < card.index(more)
    assert card.index(more) < card.index("## How it was made")
    for recipe in ("gguf-q4_k_m", "gguf-q8_0", "gguf-q6_k"):
        assert f"| `{recipe}` |" in card
    # the same recipe again replaces its own files and no others
    fourth = make_artifact(tmp_path / "again", "gguf-q8_0", engine="engine 2.0").folder
    assert publish(hub, tmp_path, fourth).returncode == 0
    again = repository.commits[repository.branches["main"]]
    assert set(again) == set(found)
    assert json.loads(again["manifests/gguf-q8_0.json"])["engine"] == "engine 2.0"
    assert again["README.md"].decode().count(mine) == 1


def test_what_does_not_belong_beside_what_is_there_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    hub.fill("me/small", {"pytorch_model.bin": b"weights", "README.md": b"# mine"})
    strange = publish(hub, tmp_path, folder)
    assert strange.returncode == 2
    assert "me/small: holds pytorch_model.bin, which this program did not publish" in last(strange)
    assert hub.commits == []
    beside = publish(hub, tmp_path, folder, "--add")
    assert beside.returncode == 0, beside.stderr
    assert "pytorch_model.bin" in (hub.repositories["me/small"].at("main") or ("", {}))[1]
    source = Artifact.load(folder).manifest.source.model_copy(update={"digest": "34" * 32, "id": "org/other"})
    other = make_artifact(tmp_path / "other", "gguf-q8_0", source=source).folder
    refused = publish(hub, tmp_path, other, "--add")
    assert (refused.returncode, "of another source" in last(refused)) == (2, True)
    gptq = make_artifact(tmp_path / "gptq", "gptq-int4").folder
    refused = publish(hub, tmp_path, gptq)
    assert (refused.returncode, "a repository of its own" in last(refused)) == (2, True)


def test_licences_that_forbid_derivatives(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    refused = publish(hub, tmp_path, folder, "--license", "cc-by-nc-nd-4.0")
    assert refused.returncode == 2
    assert "forbids derivatives" in last(refused)
    assert hub.commits == []
    allowed = publish(hub, tmp_path, folder, "--license", "cc-by-nc-nd-4.0", "--allow-no-derivatives")
    assert allowed.returncode == 0, allowed.stderr


def test_a_branch_and_a_collection(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    for _ in range(2):
        done = publish(hub, tmp_path, folder, "--revision", "next", "--collection", "Small models")
        assert done.returncode == 0, done.stderr
    repository = hub.repositories["me/small"]
    assert (repository.at("main") or ("", {}))[1] == {}
    assert "small-Q4_K_M.gguf" in (repository.at("next") or ("", {}))[1]
    assert hub.collections == {"me/small-models-1": ["me/small"]}
    assert "small-Q4_K_M.gguf" in contents(snapshot(hub, tmp_path, revision="next"))


def test_a_connection_that_breaks_and_a_second_try(hub: LoopbackHub, tmp_path: Path) -> None:
    folders = [make_artifact(tmp_path / n, f"gguf-{n}").folder for n in ("q4_k_m", "q8_0")]
    hub.cut_uploads = 1  # the client tries that file again by itself
    done = publish(hub, tmp_path, *folders)
    assert done.returncode == 0, done.stderr
    sent = [path for method, path, _ in hub.asked if method == "PUT"]
    assert len(sent) == 3
    assert len(set(sent)) == 2
    # what is there is not sent again
    asked = len(hub.asked)
    assert publish(hub, tmp_path, *folders).returncode == 0
    assert not [each for each in hub.asked[asked:] if each[0] == "PUT"]


def test_somebody_else_commits_meanwhile(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4").folder
    hub.fill("me/small", {".gitattributes": b""})
    hub.before_commit = lambda: (
        hub.fill("me/small", {".gitattributes": b"x", "other.txt": b"theirs"}) and None
    )
    done = publish(hub, tmp_path, folder)
    assert done.returncode == 2
    assert "somebody else changed it meanwhile" in last(done)
    assert "other.txt" in (hub.repositories["me/small"].at("main") or ("", {}))[1]


@pytest.mark.parametrize(
    "case", ["token", "card", "unreachable", "offline", "unverified", "changed", "marker"]
)
def test_what_is_refused(case: str, hub: LoopbackHub, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"verification": Verification(level="none")} if case == "unverified" else {}
    folder = make_artifact(tmp_path / "q4", **changes).folder
    environment: dict[str, str] = {}
    if case == "token":
        environment["HF_TOKEN"] = "hf_bad"
    elif case == "card":
        hub.card_errors = ["license: is not known"]
    elif case == "unreachable":
        environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    elif case == "offline":
        environment["HF_HUB_OFFLINE"] = "1"
    elif case == "changed":
        (folder / "small-Q4_K_M.gguf").write_bytes(b"GGUF" + b"gguf-q4_k_x")
    elif case == "marker":
        hub.fill("me/small", {"README.md": b"# x\n<!-- keep -->\nmine"})
    expected = {
        "token": (1, "HF_TOKEN"),
        "card": (2, "license: is not known"),
        "unreachable": (1, "cannot be reached"),
        "offline": (1, "HF_HUB_OFFLINE"),
        "unverified": (2, "was not verified"),
        "changed": (2, "does not match its sha256"),
        "marker": (2, "<!-- keep --> without"),
    }
    done = publish(hub, tmp_path, folder, **environment)
    code, words = expected[case]
    assert done.returncode == code, done.stderr
    assert words in last(done)
    assert last(done).startswith("quantwright: ")
    assert hub.commits == []


def test_what_from_pretrained_opens(hub: LoopbackHub, tmp_path: Path, demo_checkpoint: Path) -> None:
    from quantize import convert
    from quantize.recipe import RunOptions

    run = RunOptions(device="cpu", threads=1, progress=False)
    artifact = convert(demo_checkpoint, "bfloat16", tmp_path / "made", verify="none", run=run)
    done = publish(hub, tmp_path, artifact.folder, "--allow-unverified", "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "model, tokenizer = M.from_pretrained('me/small'), T.from_pretrained('me/small')\n"
        "print(sum(p.numel() for p in model.parameters()), len(tokenizer))"
    )
    environment = {**os.environ, **hub.environment(tmp_path / "hf2")}
    opened = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert opened.stdout.split() == [str(artifact.manifest.source.parameters), "4096"], opened.stderr
