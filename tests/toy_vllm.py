"""A stand-in for the package vLLM, for tests of how this program speaks to it: a Python in a folder whose
``import vllm`` finds a model that says after each token which is likeliest, from a table of its own."""

import sys
from pathlib import Path

WRAPPER = """#!{python}
import runpy, sys
sys.path[0], sys.argv = {packages!r}, sys.argv[2:]  # after -I
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PACKAGE = '''
import os, time
from types import SimpleNamespace as Made

import torch

__version__ = "0.0.toy"
PIECE, VOCABULARY = 5, 32


class SamplingParams:
    def __init__(self, max_tokens, temperature, detokenize, prompt_logprobs=None, ignore_eos=False):
        assert temperature == 0
        self.max_tokens, self.prompt_logprobs = max_tokens, prompt_logprobs


class Model:
    table = torch.randn((VOCABULARY, VOCABULARY), generator=torch.Generator().manual_seed(0))

    def compute_logits(self, hidden):
        return self.table[hidden]


class Engine:
    """Tokens of all rows a step, each given out by the call after the one that made it."""

    def __init__(self, model_config):
        self.model_config, self.rows, self.made = model_config, {}, []
        cache = Made(kv_cache_memory_bytes=1 << 20)
        self.vllm_config = Made(device_config=Made(device_type="toy"), cache_config=cache)

    def add_request(self, name, prompt, parameters):
        assert name not in self.rows
        self.rows[name] = (list(prompt["prompt_token_ids"]), parameters.max_tokens, [])

    def has_unfinished_requests(self):
        return bool(self.rows or self.made)

    def step(self):
        if self.made:
            made, self.made = self.made, []
            return made
        room = 2 if os.environ.get("TOY_VLLM") == "crowded" else None
        for name, (ids, wanted, new) in list(self.rows.items())[:room]:
            new.append(int(Model.table[(ids + new)[-1] % VOCABULARY].argmax()))
            self.made.append(Made(outputs=[Made(token_ids=list(new))]))
            if len(new) == wanted:
                del self.rows[name]
        return []


class LLM:
    """It takes prompts in pieces, as vLLM does with long ones."""

    def __init__(self, model, dtype, **settings):
        assert settings["skip_tokenizer_init"] and not settings["enable_prefix_caching"]
        how = os.environ.get("TOY_VLLM", "")
        if how == "refuses" or how == f"refuses {dtype}":
            raise ValueError("1 validation error\\n  this toy opens nothing")
        if how == "fails":
            raise KeyError("layers.0.weight")
        if how == "ends":
            print("toy: Assertion failed", flush=True)
            os._exit(7)
        if how == "hangs":
            time.sleep(60)
        self.model, self.scale = Model(), 2.0 if how == "lies" else 1.0
        dtype = getattr(torch, "bfloat16" if dtype == "auto" else dtype)
        self.llm_engine = Engine(Made(dtype=dtype, quantization=None))

    def apply_model(self, work):
        return [work(self.model)]

    def generate(self, prompts, parameters, use_tqdm):
        if os.environ.get("TOY_VLLM") == f"lacks {self.llm_engine.model_config.dtype}":
            raise NotImplementedError("no kernel")
        return [self._one(prompt["prompt_token_ids"], parameters) for prompt in prompts]

    def _one(self, ids, parameters):
        known = [None]
        for begin in range(0, len(ids), PIECE):
            piece = torch.tensor(ids[begin : begin + PIECE])
            following = ids[begin + 1 : begin + 1 + PIECE]
            chosen = self.model.compute_logits(piece[-1:])
            if parameters.prompt_logprobs is not None and following:
                logits = self.model.compute_logits(piece[: len(following)])
                for row, token in zip(torch.log_softmax(logits * self.scale, -1), following):
                    rank = int((row > row[token]).sum()) + 1
                    known.append({token: Made(logprob=float(row[token]), rank=rank)})
        made = [int(chosen[-1].argmax())]
        while len(made) < parameters.max_tokens:
            made.append(int(self.model.table[made[-1]].argmax()))
        return Made(prompt_logprobs=known, outputs=[Made(token_ids=made)])
'''


def toy_vllm(folder: Path) -> Path:
    """The Python that has it, in ``folder``."""
    package = folder / "packages" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE, encoding="utf-8")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(WRAPPER.format(python=sys.executable, packages=str(package.parent)), encoding="utf-8")
    python.chmod(0o755)
    return python
