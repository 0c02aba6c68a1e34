"""The model's own samples: drawn by its probabilities, begun and ended as the tokenizer says, around the
template where there is one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from quantize.calibration import samples
from quantize.calibration.samples import LONGEST_REQUEST, Row, Script, own_samples, sample
from quantize.calibration.windows import Calibration, load_calibration
from quantize.chat.special_ids import of_source
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import StepFailed
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint

CPU = RunOptions(device="cpu", dtype="float32", progress=False)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # so that its choices are far from even
        made.lm_head.weight.mul_(40)
    return made


def test_tokens_follow_the_models_probabilities(model: LlamaForCausalLM) -> None:
    """2,000 rows: the second token's frequencies are its probabilities to four standard deviations."""
    ids = sample(model, [Row(Script(((3,),), frozenset())) for _ in range(2000)], 2, seed=1)
    assert (ids[:, 0] == 3).all()
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([[3]])).logits[0, -1].double(), -1).numpy()
    counts = np.bincount(ids[:, 1], minlength=16)
    assert (np.abs(counts - 2000 * expected) <= 4 * np.sqrt(2000 * expected * (1 - expected)) + 1).all()
    assert (counts > 0).sum() > 3


def test_the_cache_changes_nothing(model: LlamaForCausalLM) -> None:
    """A long row is possible under the model without a cache: no token that it gives no probability to."""
    ids = sample(model, [Row(Script(((3,),), frozenset())) for _ in range(8)], 32, seed=2)
    with torch.no_grad():
        found = torch.log_softmax(model(torch.from_numpy(ids)).logits[:, :-1].double(), -1)
    of_those = found.gather(-1, torch.from_numpy(ids)[:, 1:, None])[..., 0]
    entropy = -(found.exp() * found).sum(-1)
    spread = ((found.exp() * (found + entropy[..., None]) ** 2).sum(-1)).sum().sqrt()
    assert abs(-of_those.sum() - entropy.sum()) < 4 * spread


def test_another_text_begins_where_one_ends(model: LlamaForCausalLM) -> None:
    ends = frozenset(range(8)) - {3}
    ids = sample(model, [Row(Script(((3, 4),), ends)) for _ in range(16)], 48, seed=3)
    assert (ids[:, :2] == [3, 4]).all()
    ended = 0
    for row in ids:
        place = 2
        while place < 48:
            if row[place] in ends:
                ended += 1
                assert list(row[place + 1 : place + 3]) == [3, 4][: 48 - place - 1]
                place += 2
            place += 1
    assert ended > 10


def test_turns() -> None:
    """User and assistant in turn; a template's end of a turn is not given twice; a request has a limit."""
    row = Row(Script(((1, 2), (9, 3)), frozenset({9, 10})))

    def says(token: int) -> None:
        assert row.given() is None
        row.follows(token)

    def gives(*tokens: int) -> None:
        for token in tokens:
            assert row.given() == token
            row.follows(token)

    gives(1, 2)
    says(5)
    says(9)
    gives(3)
    for _ in range(2 * LONGEST_REQUEST):  # an answer has none
        says(6)
    says(10)
    gives(1, 2)
    for _ in range(LONGEST_REQUEST):
        says(7)
    gives(9, 3)
    says(9)
    gives(1, 2)
    row = Row(Script(((1, 2),), frozenset({1, 9})))
    gives(1, 2)
    says(9)
    gives(1, 2)
    says(1)  # ends a text, and begins the next
    gives(2)
    says(5)


def tokenizer_with(folder: Path, bos: str, before: list[str], added: list[str]) -> SourceTokenizer:
    """BOS is called ``bos`` and ``before`` stands before every text."""
    folder.mkdir()
    vocabulary = {text: number for number, text in enumerate(["a", *added])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="a"))
    made.add_special_tokens(added)
    if before:
        made.post_processor = TemplateProcessing(
            single=[*before, "$A"], special_tokens=[(text, vocabulary[text]) for text in before]
        )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos}))
    return SourceTokenizer.open(folder)


@pytest.mark.parametrize(
    ("bos", "before", "begins"),
    [
        ("<s>", ["<s>"], ["<s>"]),  # as Llama and Gemma
        ("<s>", ["[gMASK]", "<sop>"], ["[gMASK]", "<sop>"]),  # as GLM-4
        ("<|im_start|>", [], ["<|endoftext|>"]),  # as SmolLM2-Instruct
    ],
)
def test_how_a_text_begins(bos: str, before: list[str], begins: list[str], tmp_path: Path) -> None:
    added = ["<s>", "[gMASK]", "<sop>", "<|im_start|>", "<|endoftext|>"]
    tokenizer = tokenizer_with(tmp_path / "all", bos, before, added)
    found = samples.beginning(tokenizer, of_source(tokenizer, []))
    assert [tokenizer.piece(number) for number in found] == begins
    if not before:
        few = tokenizer_with(tmp_path / "few", bos, before, added[:-1])
        assert samples.beginning(few, of_source(few, [])) == (few.id_of(bos),)


def test_samples_of_a_checkpoint(demo_checkpoint: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(demo_checkpoint)
    ids, said, _ = own_samples(checkpoint, 3, 32, 0, CPU)
    shutil.rmtree(cache)
    again, *_ = own_samples(checkpoint, 3, 32, 0, CPU)
    other, *_ = own_samples(checkpoint, 3, 32, 1, CPU)
    assert ids.shape == (3, 32)
    assert said == []
    assert (ids == again).all()
    assert (ids != other).any()
    begins = SourceTokenizer.open(checkpoint.folder).id_of("<|endoftext|>")
    assert (ids[:, 0] == begins).all()


def test_they_are_drawn_once(demo_checkpoint: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = open_checkpoint(demo_checkpoint)
    ids, *_ = own_samples(checkpoint, 2, 32, 0, CPU)
    assert "sampling 64 tokens from the model itself" in capsys.readouterr().err
    (file,) = cache.rglob("*.npy")
    again, _, there = own_samples(checkpoint, 2, 32, 0, CPU)
    assert there
    assert (again == ids).all()
    assert "drawn before" in capsys.readouterr().err
    file.write_bytes(b"no array")
    again, *_ = own_samples(checkpoint, 2, 32, 0, CPU)
    assert (again == ids).all()
    assert "sampling 64 tokens" in capsys.readouterr().err
    own_samples(checkpoint, 2, 32, 1, CPU)
    assert len(list(cache.rglob("*.npy"))) == 2


@pytest.fixture
def talks(demo_checkpoint: Path, tmp_path: Path) -> Path:
    """The demo with a chat template."""
    folder = tmp_path / "talks"
    shutil.copytree(demo_checkpoint, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return folder


def test_half_of_them_are_conversations(talks: Path) -> None:
    checkpoint = open_checkpoint(talks)
    found = load_calibration(
        checkpoint, CalibrationOptions(source="self", tokens=256, sequence_length=64), CPU
    )
    assert found.ids.shape == (4, 64)
    assert found.record.source == "self"
    assert found.record.sha256 == found.record.ids_sha256
    tokenizer = SourceTokenizer.open(checkpoint.folder)
    texts = [tokenizer.decode(row.tolist()) for row in found.ids]
    assert [text.startswith("<|im_start|>user\n") for text in texts] == [True, True, False, False]


def test_a_template_that_raises_is_said(talks: Path) -> None:
    path = talks / "tokenizer_config.json"
    refusing = "{{ raise_exception('no users here') }}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": refusing}))
    ids, said, _ = own_samples(open_checkpoint(talks), 2, 32, 0, CPU)
    assert ids.shape == (2, 32)
    assert len(said) == 1
    assert "samples are no conversations" in said[0]
    assert "no users here" in said[0]


def test_what_cannot_be_sampled(demo_checkpoint: Path, tmp_path: Path, model: LlamaForCausalLM) -> None:
    checkpoint = open_checkpoint(demo_checkpoint)
    with pytest.raises(StepFailed, match=r"take .* of memory, .*; give --calibration a text"):
        own_samples(checkpoint, 2, 32, 0, CPU.model_copy(update={"memory_bytes": 1 << 20}))
    folder = tmp_path / "nameless"
    shutil.copytree(demo_checkpoint, folder)
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        kept = {key: value for key, value in values.items() if not key.startswith(("bos", "eos"))}
        (folder / name).write_text(json.dumps(kept))
    tokens = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokens.replace("<|endoftext|>", "<|nothing|>"))
    with pytest.raises(StepFailed, match="names no token that begins a text; give --calibration a text"):
        own_samples(open_checkpoint(folder), 2, 32, 0, CPU)
    broken = LlamaForCausalLM(model.config).eval()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(StepFailed, match="NaN or Inf"):
        sample(broken, [Row(Script(((3,),), frozenset()))], 4, seed=0)


def test_auto_is_the_samples_where_they_can_be_had_else_the_built_in_text(demo_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(demo_checkpoint)

    def load(source: str, run: RunOptions) -> Calibration:
        return load_calibration(
            checkpoint, CalibrationOptions(source=source, tokens=128, sequence_length=32), run
        )

    assert load("auto", CPU).record == load("self", CPU).record
    small = CPU.model_copy(update={"memory_bytes": 1 << 20})
    found = load("auto", small)
    assert found.record == load("stdlib", small).record
    assert len(found.said) == 1
    assert found.said[0].startswith("stdlib in place of the model's own samples: its weights take ")


def test_batches_of_one_set_differ(demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "BATCH", 2)
    ids, *_ = own_samples(open_checkpoint(demo_checkpoint), 4, 32, 0, CPU)
    assert len({row.tobytes() for row in ids}) == 4
