"""Large files go through Xet where the Hub offers it and hf_xet is installed, up and down."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_person import Person
from loopback_hub import LoopbackHub, running
from loopback_xet import LZ4, NONE, Store, chunks
from sample_artifact import make_artifact

pytest.importorskip("hf_xet")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running() as server:
        server.xet = Store()
        yield server


def weights() -> bytes:
    """What is stored as it is, what LZ4 packs, and float32 whose exponents repeat."""
    rng = np.random.default_rng(0)
    text = b"".join(b"%d green bottles\n" % number for number in range(20_000))
    return rng.bytes(300_000) + text + rng.normal(size=100_000).astype(np.float32).tobytes()


def sent(hub: LoopbackHub, what: str) -> list[str]:
    return [path for method, path, _ in hub.asked if method in ("POST", "PUT") and what in path]


def test_files_go_up_and_come_back_in_chunks(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4", more=weights()).folder
    maker, reader = Person(hub, tmp_path / "maker"), Person(hub, tmp_path / "reader")
    maker.quantwright("publish", folder, "--repo", "me/small", "--license", "mit")
    assert hub.xet is not None
    assert sent(hub, "/v1/xorbs/")
    assert len(sent(hub, "/v1/shards")) == 1
    assert not sent(hub, "/objects/")
    packed = {chunk.kind for xorb in hub.xet.xorbs.values() for chunk in chunks(xorb)}
    assert {NONE, LZ4} <= packed
    assert hub.cas_tokens == {"xet-write"}  # the person's own token is not shown to the storage
    reader.pulls("me/small", reader.home / "DIR")
    name = "small-Q4_K_M.gguf"
    assert (reader.home / "DIR" / name).read_bytes() == (folder / name).read_bytes()
    assert [path for _, path, _ in hub.asked if path.startswith("/xorbs/")]


def test_a_storage_that_fails_is_one_line_with_a_way_around_it(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "q4", more=weights()).folder
    maker = Person(hub, tmp_path / "maker")
    words = ("publish", folder, "--repo", "me/small", "--license", "mit")
    hub.cas_status = 403
    said = maker.fails(*words)
    assert said.startswith("quantwright: me/small: ")
    assert "Xet storage did not take the files (403 Forbidden); run again" in said
    assert "HF_HUB_DISABLE_XET=1" in said
    assert hub.commits == []
    hub.cas_status = 0
    maker.environment["HF_HUB_DISABLE_XET"] = "1"
    maker.quantwright(*words)
    assert len(hub.commits) == 1
    (put,) = [path for method, path, _ in hub.asked if method == "PUT"]
    assert hub.objects[put.rpartition("/")[2]] == (folder / "small-Q4_K_M.gguf").read_bytes()
