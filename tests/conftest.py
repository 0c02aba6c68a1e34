"""Shared fixtures: small real checkpoints. Tests run offline and without anything outside this repository."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# What the tests start is sent signals. One that is ignored where they run (nohup, a shell's background) would
# be ignored by the children too; one that a function of ours takes is not.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Steps of tests are no experience that a person's plans should go by, nor what they verify what a person
    vouches for; what they sample, hash and leave unfinished stays out of the person's cache. What torch and
    matplotlib keep there, and engines in environments of their own, are slow to make again: they stay where
    they are."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        for variable, place in (("TORCH_EXTENSIONS_DIR", "torch_extensions"), ("MPLCONFIGDIR", "matplotlib")):
            if variable not in os.environ:
                patch.setenv(variable, str(cache / place))
        if "QUANTWRIGHT_ENVIRONMENTS" not in os.environ:
            patch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(cache / "quantwright" / "environments"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("QUANTWRIGHT_RATES", str(tmp_path_factory.mktemp("rates") / "rates.jsonl"))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def own_rates(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No experience of other tests either."""
    monkeypatch.setenv("QUANTWRIGHT_RATES", str(tmp_path_factory.mktemp("rates") / "rates.jsonl"))


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The embedded checkpoint: a trained 4-layer Llama, hidden 256, vocabulary 4096."""
    return ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Third-party models and data beside the checkout; tests that need them skip, by name, where they are
    absent."""
    if not SHARED.is_dir():
        pytest.skip("third-party data (../shared) is absent")
    return SHARED


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of small random-weight Llama checkpoints with the demo's tokenizer; keyword arguments go to
    LlamaConfig."""

    def make(**config: object) -> Path:
        import shutil

        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        settings = {
            "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
            "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
        }  # fmt: skip
        folder = tmp_path_factory.mktemp("checkpoint")
        LlamaForCausalLM(LlamaConfig(**{**settings, **config})).to(torch.bfloat16).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "demo" / "checkpoint" / name, folder / name)
        return folder

    return make


class S3Server:
    """moto's S3 over HTTP, a process of its own that can be killed. What it holds dies with it."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                assert self.process.poll() is None, "moto.server did not start"
                time.sleep(0.05)

    @property
    def environment(self) -> dict[str, str]:
        keys = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        return {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def files(self) -> Any:
        """An s3fs of this server."""
        import s3fs

        # those of another server, whose address was read from the environment
        s3fs.S3FileSystem.clear_instance_cache()
        return s3fs.S3FileSystem()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with a bucket named ``bucket``; this process and its children find it by the environment."""
    pytest.importorskip("moto", reason="moto, an S3 server for tests, is not installed (extra: dev)")
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra: s3)")
    server = S3Server()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.files().mkdir("bucket")
    yield server
    server.stop()
