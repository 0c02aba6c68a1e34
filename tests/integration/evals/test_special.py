"""Which tokens begin and end a text: item by item what lm-eval's own HF class takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from evals import evaluate
from evals.harness import RuntimeLM
from evals.special import SpecialIds, of_gguf, of_source
from quantize.chat.templates import folder_template
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput
from quantize.recipe import RunOptions
from quantize.runtimes.opening import open_runtime

RUN = RunOptions(threads=1, progress=False, device="cpu")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role "
    "here') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
FIRST, TEXT = {"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
BEGIN = {
    "type": "TemplateProcessing",
    "single": [FIRST, TEXT],
    "pair": [TEXT, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [4096], "tokens": ["<bos>"]}},
}


def edit(path: Path, **change: Any) -> None:
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in {**data, **change}.items() if value is not ...}))


def make(folder: Path, kind: str, base: Path) -> Path:
    """``sees``: the tokenizer puts <bos> first, which config.json does not name. ``turns``: the tokenizer
    has no BOS and an EOS of its own, config.json a BOS."""
    shutil.copytree(base, folder)
    text = "<bos>" if kind == "sees" else "<|im_end|>"
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    token = {
        "id": 4096,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    edit(
        folder / "tokenizer.json",
        added_tokens=[*added, token],
        **({"post_processor": BEGIN} if kind == "sees" else {}),
    )
    if kind == "sees":
        edit(folder / "tokenizer_config.json", bos_token=text, chat_template=TEMPLATE)
        edit(folder / "config.json", bos_token_id=...)
    else:
        edit(folder / "tokenizer_config.json", bos_token=None, eos_token=text)
        edit(folder / "config.json", bos_token_id=0, eos_token_id=4096)
    return folder


@pytest.fixture(scope="module")
def models(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = make_checkpoint(num_hidden_layers=1, vocab_size=4160)
    folder = tmp_path_factory.mktemp("models")
    return {kind: make(folder / kind, kind, base) for kind in ("sees", "turns")}


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def hf_class(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)


@pytest.mark.parametrize("kind", ["sees", "turns"])
def test_as_lm_evals_hf_class(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    folder = shutil.copytree(models[kind], tmp_path / "model")
    source = SourceTokenizer.open(folder)
    asked = [
        (f"Return {text}", {"until": ["\n\n"], "max_gen_toks": 8})
        for text in ("a list", "the name of it", "one of")
    ]
    with open_runtime(folder, RUN) as runtime:

        def our_class() -> RuntimeLM:
            return RuntimeLM(runtime, source, of_source(source, [folder]), template=template)

        template = folder_template(folder) if kind == "sees" else None
        free = our_class().generate_until(instances("generate_until", *asked))
        # What the model makes ends its turns from now on.
        made = [runtime.generate(source.encode(text), 8) for text, _ in asked]
        edit(folder / "generation_config.json", eos_token_id=[made[0][3], made[1][2], 4100])
        theirs, lm = hf_class(folder), our_class()
        assert lm.prefix_token_id == theirs.prefix_token_id
        assert lm.eot_token_id == theirs.eot_token_id
        ended = lm.generate_until(instances("generate_until", *asked))
        assert ended == theirs.generate_until(instances("generate_until", *asked))
        assert ended[0] != free[0]
        assert ended[1] != free[1]
        texts = [("Return a list of the names in the module.",), ("The class attribute is used",)]
        rolling = lm.loglikelihood_rolling(instances("loglikelihood_rolling", *texts))
        assert rolling == pytest.approx(
            theirs.loglikelihood_rolling(instances("loglikelihood_rolling", *texts)), rel=1e-5
        )
        if template is None:
            return
        for messages in (
            [{"role": "user", "content": "q"}],
            [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        ):
            prompt = lm.apply_chat_template(messages)
            assert prompt == theirs.apply_chat_template(messages)
            assert lm.tok_encode(prompt) == theirs.tok_encode(prompt)
            assert lm.tok_encode(prompt)[:2].count(4096) == 1
        assert lm.remarks == {
            "system messages, such as a task's description, were left out; the chat template refuses them "
            "(no system role here)"
        }


def test_a_description_that_the_template_refuses_is_left_out_and_that_is_said(
    models: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "quiz.jsonl"
    data.write_text(json.dumps({"question": "2+2 is", "choices": ["four", "five"], "answer": 0}) + "\n")
    task = tmp_path / "quiz.yaml"
    task.write_text(
        f"task: quiz\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: "
        "test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "description: Answer.\nmetric_list:\n- {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    (row,) = evaluate([models["sees"]], tasks=[task], apply_chat_template=True, run=RUN, say=lambda m: None)
    assert row.detail["remarks"] == [
        "quiz: system messages, such as a task's description, were left out; the chat template refuses them "
        "(no system role here)"
    ]
    folder = shutil.copytree(models["sees"], tmp_path / "model")
    edit(folder / "tokenizer_config.json", chat_template="{{ raise_exception('never') }}")
    with pytest.raises(BadInput, match="its chat template refuses: never"):
        evaluate([folder], tasks=[task], apply_chat_template=True, run=RUN, say=lambda m: None)


def test_wikitexts_documents_begin_as_lm_evals(models: dict[str, Path], tmp_path: Path) -> None:
    from benchmarks.peers.protocols import lm_eval_wikitext
    from evals.wikitext import wikitext_pages

    body = "".join(f" \n = Title {n} = \n Some words of page {n} , and more . \n" for n in range(2))
    (tmp_path / "wiki.txt").write_text(body, encoding="utf-8")
    for folder in models.values():
        rows = evaluate(
            [folder], text=tmp_path / "wiki.txt", protocol="lmeval-wikitext", run=RUN, say=lambda m: None
        )
        (found,) = (row.value for row in rows if row.metric == "word_perplexity")
        assert found == pytest.approx(
            lm_eval_wikitext(folder, wikitext_pages(body))["word_perplexity"], rel=1e-5
        )


def test_what_the_files_of_a_model_say(models: dict[str, Path], tmp_path: Path) -> None:
    sees, turns = (SourceTokenizer.open(models[kind]) for kind in ("sees", "turns"))
    assert of_source(sees, [models["sees"]]) == SpecialIds(4096, 0, frozenset({0}))
    assert of_source(turns, [models["turns"]]) == SpecialIds(None, 4096, frozenset({0}))
    assert of_source(turns, [models["turns"]]).prefix == 4096
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7, True, -1, "x"]}))
    assert of_source(turns, [tmp_path, models["turns"]]).ends == {5, 7, 4096}
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(models["turns"] / "tokenizer.json", bare)
    (bare / "config.json").write_text(
        json.dumps({"text_config": {"bos_token_id": 3, "eos_token_id": [8, 9]}})
    )
    # the tokenizer names none
    assert of_source(SourceTokenizer.open(bare), [bare]) == SpecialIds(3, 8, frozenset({8, 9}))


def test_a_gguf_says_it_itself(models: dict[str, Path], tmp_path: Path) -> None:
    from quantize.conversion import convert

    folder = shutil.copytree(models["turns"], tmp_path / "model")
    edit(folder / "config.json", bos_token_id=...)
    edit(folder / "generation_config.json", eos_token_id=[4096, 199])
    artifact = convert(folder, "gguf-f32", tmp_path / "gguf", verify="none", run=RUN).folder
    found = of_gguf(next(artifact.glob("*.gguf")))
    assert found.eos == 4096
    assert found.ends >= {4096}
    source = SourceTokenizer.open(folder)
    assert of_source(source, [artifact, folder]).ends == {4096, 199}
