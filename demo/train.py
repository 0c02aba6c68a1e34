"""Train a small Llama-architecture language model, tokenizer included, from any folder of text files.

    python demo/train.py TEXT_DIR -o OUT_DIR [--minutes 60] [--size cpu|gpu]
        [--weights stdlib=4,packages=4,books=2]

The tokenizer is byte-level BPE with the split pattern of Qwen2 (which llama.cpp knows by name), trained on a
sample of the same text. Hidden matrices are optimized with Muon, embeddings and norms with AdamW; the
learning rate warms up, stays, and falls linearly over the last half. Most steps use short windows; the last
part uses the full context, so that the model has seen every position it claims. Training stops after
``--minutes`` or ``--tokens``, whichever is named.
"""

import argparse
import gzip
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quantize.calibration.texts import held_out_text

SEPARATOR = "<|endoftext|>"
# The split pattern of Qwen2's tokenizer.json.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Size:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    short_context: int
    batch_tokens: int
    muon_lr: float
    adam_lr: float


SIZES = {
    "cpu": Size(256, 768, 4, 4, 2, 4096, 1024, 256, 4096, 0.02, 6e-3),
    "gpu": Size(512, 1024, 6, 8, 4, 8192, 2048, 512, 65536, 0.02, 3e-3),
}


def read_sources(folder: Path) -> dict[str, str]:
    sources = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".txt", ".txt.gz")):
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8", errors="replace") as file:
                sources[path.name.split(".")[0]] = file.read()
    if not sources:
        sys.exit(f"{folder}: no .txt or .txt.gz file")
    return sources


def train_tokenizer(sources: dict[str, str], vocabulary: int, sample_chars: int = 12_000_000):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    share = sample_chars // len(sources)
    texts = [doc for text in sources.values() for doc in text[:share].split(SEPARATOR)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer, text: str) -> np.ndarray:
    documents = text.split(SEPARATOR)
    ids: list[int] = []
    for start in range(0, len(documents), 256):
        for encoding in tokenizer.encode_batch(documents[start : start + 256]):
            ids.extend(encoding.ids)
            ids.append(0)
    return np.array(ids, dtype=np.uint16)


class Sampler:
    """Random windows, each from one source drawn by weight."""

    def __init__(self, streams: dict[str, np.ndarray], weights: dict[str, float], seed: int):
        self.rng = np.random.default_rng(seed)
        self.streams = [stream for name, stream in streams.items() if weights.get(name, 1.0) > 0]
        raw = np.array([weights.get(name, 1.0) for name in streams if weights.get(name, 1.0) > 0])
        self.probabilities = raw / raw.sum()

    def batch(self, rows: int, length: int) -> torch.Tensor:
        out = np.empty((rows, length + 1), dtype=np.int64)
        for row in range(rows):
            stream = self.streams[self.rng.choice(len(self.streams), p=self.probabilities)]
            start = self.rng.integers(0, len(stream) - length - 1)
            out[row] = stream[start : start + length + 1]
        return torch.from_numpy(out)


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest semi-orthogonal matrix by five Newton-Schulz steps (Jordan et al., 2024).

    In float32: torch's own Muon works in bfloat16, which is slow on CPUs that lack it.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                wide = update.shape[0] > update.shape[1]
                x = update.T if wide else update
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                update = x.T if wide else x
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


@torch.no_grad()
def bits_per_byte(model, tokenizer, text: str, context: int, device: str) -> float:
    """Sliding windows of ``context`` tokens, each new half scored with at least half a window of context."""
    ids = torch.tensor([0, *tokenizer.encode(text).ids], device=device)
    model.eval()
    total, scored, start = 0.0, 1, 0
    while scored < len(ids):
        window = ids[start : start + context]
        logits = model(window[None]).logits[0, :-1].float()
        losses = nn.functional.cross_entropy(logits, window[1:], reduction="none")
        total += losses[scored - start - 1 :].double().sum().item()
        scored = start + len(window)
        start += context // 2
    model.train()
    return total / math.log(2) / len(text.encode())


def build(size: Size, seed: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaForCausalLM(config)


def read_model(folder: Path):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def read_tokenizer(folder: Path):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def save(model, tokenizer, out: Path, size: Size) -> None:
    import copy

    from transformers import PreTrainedTokenizerFast

    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        model_max_length=size.context,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)
    # The class name that every release of transformers reads.
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="folder of .txt or .txt.gz files")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, help="stop after this many tokens instead of after --minutes")
    parser.add_argument("--weights", default="", help="share of each file: name=weight,... (default: all 1)")
    parser.add_argument(
        "--init", type=Path, help="go on from this checkpoint: its tokenizer and weights, a new optimizer"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=10.0, help="minutes between snapshots")
    args = parser.parse_args()

    size = SIZES[args.size]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sources = read_sources(args.text)
    tokenizer = read_tokenizer(args.init) if args.init else train_tokenizer(sources, size.vocabulary)
    streams = {}
    for name, text in sources.items():
        streams[name] = encode(tokenizer, text)
        print(f"{name}: {len(text) / 1e6:.1f} MB, {len(streams[name]) / 1e6:.2f} M tokens", flush=True)
    del sources
    weights = {k: float(v) for k, v in (pair.split("=") for pair in args.weights.split(",") if pair)}
    sampler = Sampler(streams, weights, args.seed)

    model = (read_model(args.init) if args.init else build(size, args.seed)).to(device)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(hidden, lr=size.muon_lr),
        torch.optim.AdamW(other, lr=size.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peak = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}", flush=True)

    log = args.init / "training.json" if args.init else None
    continued = json.loads(log.read_text()) if log and log.is_file() else None
    topics = held_out_text()
    start, last_save, tokens, step, loss_sum, loss_steps = time.monotonic(), time.monotonic(), 0, 0, 0.0, 0
    while True:
        elapsed = (time.monotonic() - start) / 60
        done = tokens / args.tokens if args.tokens else elapsed / args.minutes
        if done >= 1:
            break
        length = size.context if done > 0.8 else size.short_context
        batch = sampler.batch(size.batch_tokens // length, length).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(batch[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        scale = min(1.0, (step + 1) / 50, max(0.02, 2 * (1 - done)))
        for lr, group in zip(peak, [g for o in optimizers for g in o.param_groups], strict=True):
            group["lr"] = lr * scale
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += batch.shape[0] * length
        loss_sum, loss_steps = loss_sum + loss.item(), loss_steps + 1
        if step % 50 == 0:
            rate = tokens / (elapsed * 60 + 1e-9)
            print(
                f"step {step}  {tokens / 1e6:.2f} M tokens  loss {loss_sum / loss_steps:.3f}  {rate:.0f} "
                "tok/s",
                flush=True,
            )
            loss_sum, loss_steps = 0.0, 0
        if time.monotonic() - last_save > args.save_every * 60:
            last_save = time.monotonic()
            save(model, tokenizer, args.out, size)
            print(
                f"held out: {bits_per_byte(model, tokenizer, topics[:60000], size.context, device):.4f} "
                "bits per byte (part)",
                flush=True,
            )
    save(model, tokenizer, args.out, size)
    final = bits_per_byte(model.to(torch.bfloat16).float(), tokenizer, topics, size.context, device)
    record = {
        "size": args.size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": tokens,
        "continued_from": continued,
        "steps": step,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "device": device,
        "seed": args.seed,
        "sources": {
            name: {"tokens": len(stream), "weight": weights.get(name, 1.0)}
            for name, stream in streams.items()
        },
        "held_out_bits_per_byte": round(final, 4),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
