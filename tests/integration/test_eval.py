"""`quantwright eval` on small real checkpoints: the contract, agreement with plain loops and with lm-eval,
bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from evals import evaluate
from quantize.calibration.texts import stdlib_documentation
from quantize.cli import cli
from quantize.errors import BadInput, QuantwrightError, StepFailed
from quantize.recipe import RunOptions
from quantize.results import EvalResult, read_results

RUN = RunOptions(threads=1, progress=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English text of some 5,000 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(stdlib_documentation()[40_000:58_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="module")
def candidate(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with its weights disturbed."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("candidate") / "model"
    shutil.copytree(checkpoint, folder)
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.05)
    model.save_pretrained(folder)
    return folder


def by_metric(rows: list[EvalResult], artifact: Path, protocol: str) -> dict[str, EvalResult]:
    return {row.metric: row for row in rows if row.artifact == str(artifact) and row.protocol == protocol}


def token_ids(checkpoint: Path, body: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(body).ids
    return ids


def test_perplexity_equals_a_ten_line_loop(checkpoint: Path, text: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = evaluate([checkpoint], text=text, protocol=["llamacpp-128", "gptq-128"], run=RUN)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor(token_ids(checkpoint, text.read_text().removesuffix("\n")))
    halves, wholes = [], []
    for i in range(len(ids) // 128):
        window = ids[i * 128 : (i + 1) * 128]
        with torch.no_grad():
            logits = model(window[None]).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="none")
        halves.append(loss[64:])
        wholes.append(loss)
    for protocol, losses in (("llamacpp-128", halves), ("gptq-128", wholes)):
        row = by_metric(rows, checkpoint, protocol)["perplexity"]
        flat = torch.cat(losses)
        assert row.value == pytest.approx(float(flat.mean().exp()), rel=1e-5)
        assert row.n == len(flat)
        assert row.stderr == pytest.approx(
            float(flat.mean().exp() * flat.std(correction=0) / (len(flat) - 1) ** 0.5), rel=1e-4
        )
        assert row.samples == pytest.approx([float(x.mean()) for x in losses], rel=1e-4)


def test_divergence_from_the_reference_and_from_itself(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    settings = {
        "reference": checkpoint,
        "text": text,
        "protocol": "llamacpp-128",
        "tokens": 2000,
        "run": RUN,
        "say": said.append,
    }
    cached = evaluate([candidate, checkpoint], out=tmp_path, **settings)  # type: ignore[arg-type]
    assert [row.artifact for row in cached] == sorted(
        [row.artifact for row in cached], key=lambda a: a == str(checkpoint)
    )
    itself = by_metric(cached, checkpoint, "llamacpp-128")
    assert itself["perplexity"].role == itself["kl_mean"].role == "reference"
    assert itself["kl_max"].value is not None
    assert 0 <= itself["kl_max"].value < 1e-5
    assert itself["top1_agreement"].value == 1
    moved = by_metric(cached, candidate, "llamacpp-128")
    assert moved["kl_mean"].value is not None
    assert moved["kl_mean"].value > 1e-4
    low, high = moved["kl_mean"].interval or (0, 0)
    assert low < moved["kl_mean"].value < high
    assert moved["ppl_ratio"].value == pytest.approx(
        moved["perplexity"].value / itself["perplexity"].value, rel=1e-5
    )
    expected = {
        "perplexity",
        "bits_per_byte",
        "kl_mean",
        "kl_median",
        "kl_p90",
        "kl_p95",
        "kl_p99",
        "kl_p99.9",
        "kl_max",
    }
    expected |= {"top1_agreement", "ppl_ratio", "ppl_difference", "delta_p_mean", "delta_p_rms"}
    assert expected - {"bits_per_byte"} <= set(moved)
    assert {row.environment["ids_sha256"] for row in cached} == {moved["kl_mean"].environment["ids_sha256"]}
    assert {row.ids for row in cached} == {"source"}

    beside = evaluate([candidate, checkpoint], cache_limit=1000, **settings)  # type: ignore[arg-type]
    assert any("runs again beside every candidate" in line for line in said)
    exact = by_metric(beside, candidate, "llamacpp-128")
    for metric in ("kl_mean", "kl_p99", "ppl_ratio", "delta_p_rms", "top1_agreement", "perplexity"):
        assert moved[metric].value == pytest.approx(exact[metric].value, rel=1e-3, abs=1e-6)
    assert by_metric(beside, checkpoint, "llamacpp-128")["kl_max"].value == 0

    again = evaluate([candidate], out=tmp_path, **settings)  # type: ignore[arg-type]
    assert any("are at hand" in line for line in said)
    assert by_metric(again, candidate, "llamacpp-128")["kl_mean"].value == moved["kl_mean"].value
    written = {subject.name: (subject, rows) for subject, rows in read_results(tmp_path)}
    assert written[str(candidate)][1] == again
    assert written[str(checkpoint)][0].role == "reference"
    assert not list(tmp_path.glob("cache/.reference-*"))


def test_a_reference_whose_results_were_kept_is_not_loaded_again(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    """As a job's steps share them: each candidate is evaluated in a process of its own."""

    def run(dtype: str = "auto", **more: Any) -> tuple[list[EvalResult], bool]:
        said: list[str] = []
        options = RunOptions(threads=1, progress=False, dtype=dtype)  # type: ignore[arg-type]
        found = evaluate(
            [candidate], reference=checkpoint, text=text, protocol="llamacpp-64", tokens=1000, generate=3,
            out=tmp_path,
            run=options, say=said.append, **more,
        )  # fmt: skip
        return found, any("its weights are not loaded" in line for line in said)

    def of_reference() -> dict[str, EvalResult]:
        return {row.metric: row for subject, rows in read_results(tmp_path) if subject.role for row in rows}

    first, light = run()
    assert not light
    known = of_reference()
    assert {"perplexity", "generations"} <= set(known)
    again, light = run()
    assert light
    assert again == first
    assert of_reference() == known
    assert run(dtype="bfloat16")[1] is False  # computed otherwise, so other logits
    assert run(prompts=["Other words"])[1] is False
    assert run(cache_limit=1000)[1] is False  # what was kept is more than this call allows
    assert not list(tmp_path.glob("cache/.reference-*"))


def test_a_folder_that_transformers_saved_with_bitsandbytes(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config).save_pretrained(
        tmp_path / "theirs"
    )
    settings = {"reference": checkpoint, "text": text, "tokens": 1000, "protocol": "gptq-100", "run": RUN}
    rows = evaluate([tmp_path / "theirs"], out=tmp_path / "run", **settings)
    flying = evaluate([checkpoint], load_as="bnb-nf4", **settings)
    assert {row.metric: row.value for row in rows}["kl_mean"] == pytest.approx(
        {row.metric: row.value for row in flying}["kl_mean"], rel=1e-3
    )
    subject = next(subject for subject, _ in read_results(tmp_path / "run") if not subject.role)
    assert (subject.recipe, subject.loads_in) == ("bitsandbytes", ("transformers",))


def test_a_folder_of_compressed_tensors(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """4 bits in groups of 32, packed by the format's own library, are the weights that rounding by hand
    gives."""
    pytest.importorskip("compressed_tensors")
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from transformers import AutoModelForCausalLM

    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format="pack-quantized",
        quantization_status="frozen",
    )
    rounded, packed = (
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32) for _ in range(2)
    )
    apply_quantization_config(packed, config)
    for name, module in packed.named_modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.view(module.out_features, -1, 32)
            scale = groups.abs().amax(-1, keepdim=True) / 7.5
            module.weight_scale.data = scale[..., 0].to(module.weight_scale.dtype)
            by_hand = (groups / scale).round().clamp(-8, 7) * scale
            rounded.get_submodule(name).weight.data = by_hand.view(module.weight.shape)
    compressor = ModelCompressor.from_pretrained_model(packed)
    compressor.compress_model(packed)
    for model, folder in ((packed, tmp_path / "packed"), (rounded, tmp_path / "rounded")):
        model.save_pretrained(folder)
        shutil.copy(checkpoint / "tokenizer.json", folder)
    compressor.update_config(tmp_path / "packed")

    both = [tmp_path / "packed", tmp_path / "rounded"]
    rows = evaluate(
        both, reference=checkpoint, text=text, tokens=1000, protocol="gptq-100", out=tmp_path / "run", run=RUN
    )
    theirs, ours = (by_metric(rows, path, "gptq-100")["kl_mean"].value for path in both)
    assert theirs > 1e-4
    assert theirs == pytest.approx(ours, rel=1e-4)
    subjects = {subject.name: subject for subject, _ in read_results(tmp_path / "run")}
    assert subjects[str(both[0])].recipe == "compressed-tensors"


def test_floors_are_below_what_a_rounded_model_loses(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    """Another dtype, and another runtime on the same ids, both of the reference itself."""
    settings = {"reference": checkpoint, "text": text, "tokens": 1000, "protocol": "gptq-100", "run": RUN}
    rows = evaluate([candidate], out=tmp_path / "run", **settings)
    loss = by_metric(rows, candidate, "gptq-100")["kl_mean"].value
    results = [
        result
        for subject, found in read_results(tmp_path / "run")
        for result in found
        if result.role == "floor"
    ]
    floors = {result.backend: result.value for result in results if result.metric == "kl_mean"}
    assert floors.keys() == {"transformers", "llama.cpp"}
    assert 0 <= floors["llama.cpp"] < 1e-6
    assert floors["llama.cpp"] < floors["transformers"] < loss
    assert {(result.n, len(result.samples)) for result in results if result.metric == "kl_mean"} == {
        (2 * 99, 2)
    }
    evaluate([candidate], floors=False, out=tmp_path / "without", **settings)
    assert not [
        row for _, found in read_results(tmp_path / "without") for row in found if row.role == "floor"
    ]


def test_a_floor_that_cannot_be_had_says_why_and_costs_nothing(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever another library raises; what may pass is tried again."""
    from evals import floors
    from reports import build

    settings = {
        "reference": checkpoint,
        "text": text,
        "tokens": 1000,
        "protocol": "gptq-100",
        "out": tmp_path / "run",
        "run": RUN,
    }
    real = floors.open_runtime

    def broken(path: Path, run: RunOptions, **more: Any) -> Any:
        if run.dtype == "bfloat16":
            raise RuntimeError("no kernel for BFloat16")
        return real(path, run, **more)

    monkeypatch.setattr(floors, "open_runtime", broken)
    before = evaluate([candidate], **settings)
    build([tmp_path / "run"])
    assert "no kernel for BFloat16" in (tmp_path / "run" / "report" / "report.md").read_text()
    monkeypatch.undo()
    after = evaluate([candidate], **settings)
    assert [row.value for row in before] == [row.value for row in after]
    results = [
        result for _, found in read_results(tmp_path / "run") for result in found if result.role == "floor"
    ]
    assert all(result.value is not None for result in results if result.metric == "kl_mean")


def test_a_gguf_reference_has_a_floor_too(checkpoint: Path, tmp_path: Path, text: Path) -> None:
    from quantize.conversion import convert

    both = [tmp_path / recipe for recipe in ("gguf-f16", "gguf-q4_0")]
    for folder in both:
        convert(checkpoint, folder.name, folder, verify="none", run=RUN)
    evaluate(
        both[1:],
        reference=both[0],
        text=text,
        tokens=1000,
        protocol="llamacpp-100",
        out=tmp_path / "run",
        run=RUN,
    )
    results = [result for _, found in read_results(tmp_path / "run") for result in found]
    floor, loss = ([r for r in results if (r.metric, r.role) == ("kl_mean", role)] for role in ("floor", ""))
    assert [r.artifact for r in floor] == [f"{both[0].name} with an F32 KV cache"]
    assert 0 < floor[0].value < loss[0].value


def test_generations_are_greedy_and_side_by_side_in_the_report(
    checkpoint: Path, candidate: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from reports import build

    prompts = ["The river had risen", "<b>Return & go</b>"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8"
    )
    rows = evaluate(
        [checkpoint, candidate], prompts=tmp_path / "prompts.txt", generate=12, run=RUN, out=tmp_path / "run"
    )
    assert [(row.metric, row.protocol, row.n, row.value) for row in rows] == [
        ("generations", "greedy-12", 2, None)
    ] * 2
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for item, prompt in zip(rows[0].detail["items"], prompts, strict=True):
        ids = torch.tensor([token_ids(checkpoint, prompt)])
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[
                0, ids.shape[1] :
            ].tolist()
        ended = "end of text" if made[-1] == 0 else "length"
        assert (item["prompt"], item["ids"], item["ended"]) == (prompt, [i for i in made if i], ended)
    again = evaluate([checkpoint], prompts=tmp_path / "prompts.jsonl", generate=12, run=RUN)
    assert again[0].detail == rows[0].detail
    assert rows[1].detail != rows[0].detail

    against = evaluate(
        [candidate],
        reference=checkpoint,
        generate=6,
        tokens=600,
        protocol="gptq-64",
        run=RUN,
        out=tmp_path / "run",
    )
    assert len(against[-1].detail["items"]) == 3
    build([tmp_path / "run"])
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Side by side" in page
    assert "<mark>" in page
    assert "<b>Return" not in page


def test_tasks_agree_with_lm_eval_item_by_item(checkpoint: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from evals.heldout_task import make_items
    from evals.local_task import LocalTask
    from evals.task_files import export_yaml

    items = make_items(stdlib_documentation()[:200_000], 16)
    contexts = [
        {"context_options": i["choices"][:2], "continuation": i["query"][:40], "gold": 1} for i in items
    ]
    plain = [{"context": i["query"], "continuation": i["choices"][0].split()[0]} for i in items]
    tasks = [
        LocalTask("choose", tmp_path / "choose.jsonl", "choices", tuple(items)),
        LocalTask("which", tmp_path / "which.jsonl", "contexts", tuple(contexts)),
        LocalTask("next", tmp_path / "next.jsonl", "continuation", tuple(plain)),
    ]
    yamls = [export_yaml(task, tmp_path) for task in tasks]
    ours = evaluate([checkpoint], tasks=[tmp_path / f"{task.name}.jsonl" for task in tasks], run=RUN)
    by_yaml = evaluate([checkpoint], tasks=[yamls[0]], run=RUN)
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=str(checkpoint), dtype="float32", batch_size=4, device="cpu"),
        tasks=[str(path) for path in yamls],
        bootstrap_iters=10,
        task_manager=TaskManager(include_defaults=False),
    )
    names = {"accuracy": "acc", "accuracy_norm": "acc_norm", "perplexity": "perplexity"}
    assert {(row.task, row.metric) for row in ours} >= {
        ("choose", "accuracy_norm"),
        ("which", "accuracy"),
        ("next", "perplexity"),
    }
    for row in [*ours, *by_yaml]:
        samples = sorted(theirs["samples"][row.task], key=lambda s: s["doc_id"])
        assert row.samples == pytest.approx([float(s[names[row.metric]]) for s in samples], rel=1e-4)
        assert row.value == pytest.approx(theirs["results"][row.task][f"{names[row.metric]},none"], rel=1e-4)
    accuracy = next(row for row in ours if (row.task, row.metric) == ("choose", "accuracy"))
    assert accuracy.stderr == pytest.approx(theirs["results"]["choose"]["acc_stderr,none"])


def test_lmeval_wikitext_agrees_with_lm_eval(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from benchmarks.peers.protocols import lm_eval_wikitext
    from evals.protocols import wikitext_pages

    page = (
        " \n Some text of {0} , with @-@ marks . It has 3 @.@ 5 parts ( {0} ) and goes on .\n \n = = Part = "
        "= \n \n" + " More words , and so on . " * 80
    )
    body = "".join(f" \n = Title {n} = \n {page.format(n)} \n" for n in range(3))
    (tmp_path / "wiki.txt").write_text(body, encoding="utf-8")
    rows = evaluate([checkpoint], text=tmp_path / "wiki.txt", protocol="lmeval-wikitext", run=RUN)
    theirs = lm_eval_wikitext(checkpoint, wikitext_pages(body))
    for metric, row in by_metric(rows, checkpoint, "lmeval-wikitext").items():
        if metric != "perplexity":
            assert row.value == pytest.approx(theirs[metric], rel=1e-5)
    assert len(rows) == 4


@pytest.fixture(scope="module")
def broken(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The checkpoint with a NaN in the embedding of one token, that of " return"; and that token."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    (token,) = token_ids(checkpoint, " return")[-1:]
    state["model.embed_tokens.weight"][token] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, token


def test_non_finite_tokens_are_left_out_counted_and_reported(
    checkpoint: Path, broken: tuple[Path, int], text: Path, tmp_path: Path
) -> None:
    from reports import build

    folder, token = broken
    ids = np.array(token_ids(checkpoint, text.read_text().removesuffix("\n"))[:4000])
    windows = ids[: len(ids) // 100 * 100].reshape(-1, 100)
    # A window is lost from the first such token on, or as a whole where the attention kernel multiplies what
    # it masks by zero.
    hit = windows == token
    least, most = int(hit[:, :-1].cumsum(1).astype(bool).sum()), 99 * int(hit.any(1).sum())
    assert 0 < least < most < windows.size / 2
    rows = evaluate(
        [folder],
        reference=checkpoint,
        text=text,
        tokens=4000,
        protocol="gptq-100",
        run=RUN,
        out=tmp_path / "run",
    )
    for row in rows:
        assert least <= row.excluded <= most
        assert row.n + row.excluded == 99 * len(windows)
        assert row.value is not None
    assert by_metric(rows, folder, "gptq-100")["kl_mean"].value == pytest.approx(0, abs=1e-5)
    build([tmp_path / "run"])
    assert "not finite" in (tmp_path / "run" / "report" / "report.md").read_text()


def test_items_with_non_finite_logits_are_wrong_and_counted(broken: tuple[Path, int], tmp_path: Path) -> None:
    task = tmp_path / "t.jsonl"
    items = [
        {"query": query, "choices": ["one", "two"], "gold": 0}
        for query in ("The first return", "The first stone")
    ]
    task.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    (row, *_) = evaluate([broken[0]], tasks=[task], run=RUN)
    assert row.detail["non_finite_items"] == 1
    assert row.samples[0] == 0
    assert "1 of 2 items" in row.detail["remarks"][0]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments), "--threads", "1"])


def test_json_is_the_last_line_of_stdout(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    task = tmp_path / "t.jsonl"
    task.write_text(
        '{"query": "One and", "choices": ["two", "elephants"], "gold": 0}\n' * 3, encoding="utf-8"
    )
    done = invoke(
        candidate, checkpoint, "--reference", checkpoint, "--text", text, "--tokens", 1000, "--protocol",
        "gptq-64,llamacpp-64",
        "--tasks", task, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    assert all({"metric", "protocol", "value", "stderr", "artifact"} <= set(row) for row in rows)
    assert all(isinstance(row["protocol"], str) and isinstance(row["value"], float) for row in rows)
    keys = [(row["artifact"], row["protocol"], row["task"], row["metric"]) for row in rows]
    assert [row["role"] == "floor" for row in rows] == sorted(row["role"] == "floor" for row in rows)
    assert len(keys) == len(set(keys))
    order = list(dict.fromkeys((row["artifact"], row["protocol"]) for row in rows if row["role"] != "floor"))
    protocols = ["gptq-64", "llamacpp-64", "lm-eval"]
    assert order == [
        (str(artifact), protocol) for artifact in (candidate, checkpoint) for protocol in protocols
    ]
    assert {row["metric"] for row in rows if row["task"]} == {"accuracy", "accuracy_norm"}
    assert {row["role"] for row in rows} == {"", "reference", "floor"}


def test_the_default_text_is_said_out_loud(checkpoint: Path) -> None:
    said: list[str] = []
    rows = evaluate([checkpoint], tokens=600, protocol="llamacpp-128", run=RUN, say=said.append)
    assert any("held-out text" in line and "sha256" in line for line in said)
    assert "pydoc_data" in rows[0].environment["text"]


def test_calibration_text_is_warned_of(checkpoint: Path, candidate: Path, text: Path, tmp_path: Path) -> None:
    import hashlib

    from quantize.artifact.artifact import CalibrationRecord, Manifest, Source, Verification, hash_files

    folder = tmp_path / "artifact"
    shutil.copytree(candidate, folder)
    digest = hashlib.sha256(text.read_text().encode()).hexdigest()
    manifest = Manifest(
        recipe={"method": "dense"}, recipe_short="bfloat16", recipe_digest="0", tool={}, engine="native",
        libraries={},
        source=Source(
            id=str(checkpoint), revision=None, digest="", dtype="BF16", architecture="", model_type="llama",
            parameters=1
        ),
        calibration=CalibrationRecord(source="mine.txt", sha256=digest, ids_sha256="", tokens=1,
        sequence_length=1, seed=0),
        files=hash_files(folder), weight_bytes=1, bits_per_weight=16.0, runtime="transformers",
        loads_in=("transformers",),
        verification=Verification(level="none"),
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    said: list[str] = []
    rows = evaluate(
        [folder],
        metrics=["perplexity", "divergence"],
        text=text,
        tokens=600,
        protocol="gptq-64",
        run=RUN,
        say=said.append,
    )
    assert any("was calibrated on this very text (mine.txt)" in line for line in said)
    assert any(line.startswith(f"reference: {checkpoint}") for line in said)  # the manifest names it
    assert any(row.metric == "kl_mean" for row in rows)


BAD: list[tuple[list[str], str]] = [
    (["--protocol", "lamacpp-512"], "did you mean llamacpp-512"),
    (["--metrics", "perplexty"], "did you mean perplexity"),
    (["--metrics", "divergence"], "give --reference MODEL"),
    (["--text", "{tmp}/none.txt"], "no such text file"),
    (["--text", "{tmp}/empty.txt"], "is empty"),
    (["--text", "{tmp}/short.txt", "--protocol", "llamacpp-128"], "needs a text of at least 256 tokens"),
    (["--text", "{tmp}/gbk.txt"], "not UTF-8"),
    (["--tasks", "{tmp}/bad.jsonl"], "bad.jsonl:2: not valid JSON"),
    (["--tasks", ","], "expected at least one name"),
    (["--load-as", "no-such-recipe"], "unknown recipe"),
    (["--reference", "{tmp}/nothing"], "no such folder"),
    (["--prompts", "{tmp}/none.txt"], "no such text file"),
    (["--prompts", "{tmp}/bad.jsonl"], "bad.jsonl:1: expected"),
]


@pytest.mark.parametrize(("options", "expected"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_bad_input(checkpoint: Path, tmp_path: Path, options: list[str], expected: str) -> None:
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    (tmp_path / "gbk.txt").write_bytes("量化模型".encode("gbk") * 50)
    (tmp_path / "bad.jsonl").write_text(
        '{"query": "a", "choices": ["b", "c"], "gold": 0}\n{', encoding="utf-8"
    )
    out = tmp_path / "run"
    done = invoke(checkpoint, *[option.format(tmp=tmp_path) for option in options], "-o", out)
    assert isinstance(done.exception, QuantwrightError)
    assert done.exception.exit_code == 2
    assert expected in str(done.exception)
    assert "\n" not in str(done.exception)


def test_bad_artifacts(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"not gguf at all")
    (tmp_path / "empty").mkdir()
    for name, expected in (
        ("fake.gguf", "not a GGUF file"),
        ("none.gguf", "no such file"),
        ("empty", "neither manifest.json, config.json"),
    ):
        with pytest.raises(BadInput, match=expected):
            evaluate([tmp_path / name], run=RUN)
    with pytest.raises(BadInput, match="listed twice"):
        CliRunner().invoke(cli, ["eval", str(checkpoint), str(checkpoint)], catch_exceptions=False)


def test_another_vocabulary_is_a_clear_error_and_costs_one_artifact(
    checkpoint: Path, candidate: Path, make_checkpoint: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(vocab_size=4160)
    said: list[str] = []
    with pytest.raises(BadInput, match="logits for 4160 tokens, the reference for 4096"):
        evaluate(
            [other, candidate],
            reference=checkpoint,
            text=text,
            tokens=600,
            protocol="gptq-64",
            run=RUN,
            out=tmp_path,
            say=said.append,
        )
    written = {subject.name: (subject, rows) for subject, rows in read_results(tmp_path)}
    assert written[str(other)][0].status == "unsupported"
    assert "4160" in written[str(other)][0].reason
    assert len(written[str(candidate)][1]) > 10
    assert any(line.startswith(f"failed: {other}") for line in said)


def test_an_artifact_whose_library_fails_costs_its_own_rows_alone(
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def broken(self: LlamaMLP, x: Any) -> Any:
        if self.intermediate_size == 640:
            raise ValueError("no such kernel\nsecond line")
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", broken)
    other = make_checkpoint(intermediate_size=640)
    said: list[str] = []
    with pytest.raises(StepFailed, match=r"ValueError: no such kernel$"):
        evaluate(
            [other, checkpoint],
            text=text,
            tokens=600,
            protocol="gptq-64",
            run=RUN,
            out=tmp_path,
            say=said.append,
        )
    written = {subject.name: (subject, rows) for subject, rows in read_results(tmp_path)}
    assert (written[str(other)][0].status, written[str(other)][0].reason) == (
        "failed",
        "ValueError: no such kernel",
    )
    assert len(written[str(checkpoint)][1]) == 2
    assert any("Traceback" in line for line in said)


def test_a_longer_window_than_the_context_adapts_out_loud(checkpoint: Path, text: Path) -> None:
    said: list[str] = []
    (row, *_) = evaluate([checkpoint], text=text, tokens=1200, run=RUN, say=said.append)
    assert row.protocol == "llamacpp-256"
    assert any("measuring llamacpp-256 instead" in line for line in said)


def test_numbers_do_not_depend_on_the_block_size(
    checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evals import kernels

    settings = {"text": text, "tokens": 800, "protocol": "gptq-100", "run": RUN}
    whole = evaluate([checkpoint], **settings)
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 3 * 4096)
    pieces = evaluate([checkpoint], **settings)
    assert np.array(whole[0].samples) == pytest.approx(np.array(pieces[0].samples), rel=1e-9)


def test_a_gguf_alone_needs_no_torch(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """Importing it takes longer than a small text does in llama.cpp."""
    from quantize.conversion import convert

    artifact = convert(checkpoint, "gguf-q8_0", tmp_path / "gguf", verify="none", run=RUN)
    (file,) = artifact.folder.glob("*.gguf")
    command = [
        "eval",
        str(file),
        "--ids",
        "runtime",
        "--text",
        str(text),
        "--protocol",
        "llamacpp-64",
        "--device",
        "cpu",
    ]
    program = (
        "import sys\nfrom quantize.cli import cli\n"
        f"try:\n    cli({command!r})\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'transformers', 'scipy.stats'} & "
        "set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_reference_of_which_nothing_is_asked_stays_shut(
    checkpoint: Path, candidate: Path, text: Path, tmp_path: Path
) -> None:
    """Its tokenizer and name are: perplexity alone needs no weights of it."""
    reference = tmp_path / "reference"
    shutil.copytree(checkpoint, reference)
    (reference / "model.safetensors").write_bytes((reference / "model.safetensors").read_bytes()[:-1000])
    settings = {"text": text, "protocol": "llamacpp-64", "tokens": 600, "run": RUN}
    rows = evaluate([candidate], reference=reference, metrics=["perplexity"], **settings)  # type: ignore[arg-type]
    assert [row.metric for row in rows] == ["perplexity", "bits_per_byte"]
    with pytest.raises(QuantwrightError, match=r"transformers cannot load it: .*not fully covered"):
        evaluate([candidate], reference=reference, metrics=["divergence"], **settings)  # type: ignore[arg-type]
