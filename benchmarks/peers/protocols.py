"""Perplexity protocols beside the loops that define them: ``python -m benchmarks.peers.protocols MODEL...
--text FILE``.

Theirs: IST-DASLab/gptq's loop and the sliding window of transformers' documentation, written out on plain
transformers in float32, and lm-eval's wikitext task on its own HFLM. Ours: ``evals.evaluate`` on the same
file. Prints rows of the table.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals import evaluate
from evals.subjects import resolve
from evals.wikitext import wikitext_pages, wikitext_rows
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.documents import read_document
from quantize.recipe import RunOptions


def gptq(model: Any, ids: Any, window: int) -> float:
    """gptq.py's evaluation: disjoint windows, the mean loss of each times its length, in float32."""
    import torch

    losses, count = [], ids.shape[1] // window
    for i in range(count):
        batch = ids[:, i * window : (i + 1) * window]
        logits = model(batch).logits
        loss = torch.nn.CrossEntropyLoss()(
            logits[:, :-1].reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1)
        )
        losses.append(loss.float() * window)
    return float(torch.exp(torch.stack(losses).sum() / (count * window)))


def strided(model: Any, ids: Any, window: int, stride: int) -> float:
    """The loop of "Perplexity of fixed-length models": what an earlier window scored is masked with -100."""
    import torch

    total, tokens, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        part = ids[:, begin:end]
        labels = part.clone()
        labels[:, : -(end - previous)] = -100
        loss = model(part, labels=labels).loss
        scored = int((labels[:, 1:] != -100).sum())
        total, tokens, previous = total + float(loss) * scored, tokens + scored, end
        if end == ids.shape[1]:
            break
    return float(torch.exp(torch.tensor(total / tokens, dtype=torch.float64)))


def lm_eval_wikitext(folder: Path, pages: list[str]) -> dict[str, float]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.wikitext import preprocess_wikitext

    def dataset(**_: object) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"test": Dataset.from_list([{"page": page} for page in pages])})

    task = {
        "task": "wikitext",
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": preprocess_wikitext.wikitext_detokenizer,
        "process_results": preprocess_wikitext.process_results,
        "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    lm = HFLM(pretrained=str(folder), dtype="float32", batch_size=1, device="cpu")
    outcome = simple_evaluate(
        lm, tasks=[task], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
    )
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    return {metric: outcome["results"]["wikitext"][f"{metric},none"] for metric in metrics}


def rows(
    name: str, text: Path, tokens: int, window: int, run: RunOptions
) -> Iterator[tuple[str, str, str, float, float]]:
    """(protocol, tool, metric, theirs, ours)."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, body = resolve(name).path, read_document(text).text
    tokenizer = SourceTokenizer.open(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stride = window // 4
    protocols = (f"gptq-{window}", f"strided-{window}-{stride}")
    measured = evaluate([folder], text=text, tokens=tokens, protocol=protocols, run=run)
    found = {r.protocol: r.value or 0.0 for r in measured if r.metric == "perplexity"}
    with torch.no_grad():
        joined = torch.tensor([tokenizer.encode("\n\n".join(wikitext_rows(body)))[:tokens]])
        yield (
            protocols[0],
            "IST-DASLab/gptq's loop",
            "perplexity",
            gptq(model, joined, window),
            found[protocols[0]],
        )
        theirs = strided(model, joined, window, stride)
        yield protocols[1], "loop of transformers' documentation", "perplexity", theirs, found[protocols[1]]
    pages = wikitext_pages(body)
    while sum(map(len, pages)) > 4 * tokens and len(pages) > 1:
        pages.pop()
    few = Path(f"{text.stem}.pages")
    few.write_text("\n".join(pages), encoding="utf-8")
    pages = wikitext_pages(read_document(few).text)
    try:
        ours = {r.metric: r.value for r in evaluate([folder], text=few, protocol="lmeval-wikitext", run=run)}
    finally:
        few.unlink()
    for metric, value in lm_eval_wikitext(folder, pages).items():
        yield "lmeval-wikitext", "lm-eval, HFLM", metric, value, float(ours[metric] or 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--window", type=int, default=256)
    options = parser.parse_args()
    run = RunOptions(device="cpu", progress=False)
    for model in options.models:
        for protocol, tool, metric, theirs, ours in rows(
            model, options.text, options.tokens, options.window, run
        ):
            figures = f"{theirs:.6g} | {ours:.6g} | {abs(ours / theirs - 1):.0e}"
            print(f"| `{protocol}` | {tool} | {Path(model).name} | {metric} | {figures} |")


if __name__ == "__main__":
    main()
