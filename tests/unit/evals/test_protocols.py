import numpy as np
import pytest

from evals.protocols import parse_protocol
from evals.wikitext import detokenize_wikitext, is_wikitext, wikitext_pages, wikitext_rows
from evals.windows import make_windows
from quantize.errors import BadInput

TEXT = "abcdefghij" * 30
WIKI = (
    " \n = First = \n \n Some words here . \n \n = = Part = = \n \n More @-@ words , and (  so  ) on . \n \n"
    " = Second = \n \n End \n"
)


def letters(text: str, add_special: bool = True) -> list[int]:
    """One id a character; id 0 is a BOS."""
    ids = [ord(c) for c in text]
    return [0, *ids] if add_special else ids


def no_bos(text: str, add_special: bool = True) -> list[int]:
    return [ord(c) for c in text]


def quiet(message: str) -> None:
    pass


def test_llamacpp_scores_the_second_half_and_puts_bos_first() -> None:
    w = make_windows(parse_protocol("llamacpp-16"), TEXT + "\n", letters, ids="source")
    assert len(w.windows) == 301 // 16
    assert all(len(window.tokens) == 16 and window.tokens[0] == 0 for window in w.windows)
    assert all(window.first == 8 and window.scored == 7 for window in w.windows)
    plain = make_windows(parse_protocol("llamacpp-16"), TEXT + "\n", no_bos, ids="source")
    assert plain.windows[1].tokens[0] == ord(TEXT[16])
    assert plain.text_tokens == len(TEXT)  # the newline at the end is dropped, once


def test_gptq_scores_all_but_the_first_of_each_window_with_one_bos_in_all() -> None:
    w = make_windows(parse_protocol("gptq-20"), TEXT, letters, ids="source")
    assert len(w.windows) == 15
    assert [int(window.tokens[0]) for window in w.windows[:2]] == [0, ord(TEXT[19])]
    assert all(window.first == 0 and window.scored == 19 for window in w.windows)


def test_strided_scores_every_token_once() -> None:
    w = make_windows(parse_protocol("strided-32-8"), TEXT, letters, ids="source")
    stream = letters(TEXT)
    targets = np.concatenate([window.tokens[window.first + 1 :] for window in w.windows])
    assert targets.tolist() == stream[1:]
    assert {window.scored for window in w.windows[1:-1]} == {8}


def test_strided_follows_the_loop_of_the_transformers_documentation() -> None:
    stream, length, stride, previous_end = letters(TEXT), 32, 8, 0
    expected = []
    for begin in range(0, len(stream), stride):
        end = min(begin + length, len(stream))
        labels = np.array(stream[begin:end])
        labels[: len(labels) - (end - previous_end)] = -100
        expected.append([int(t) for t in labels[1:] if t != -100])
        previous_end = end
        if end == len(stream):
            break
    ours = [
        window.tokens[window.first + 1 :].tolist()
        for window in make_windows(parse_protocol("strided-32-8"), TEXT, letters, ids="source").windows
    ]
    assert ours == [targets for targets in expected if targets]


def test_exl3_takes_at_most_100_rows_without_special_tokens() -> None:
    w = make_windows(parse_protocol("exl3-8"), TEXT * 4, letters, ids="source")
    assert len(w.windows) == 100
    assert w.windows[0].tokens[0] == ord("a")


def test_lmeval_windows_are_the_harness_own() -> None:
    utils = pytest.importorskip("lm_eval.utils")
    for size in (1, 3, 7, 8, 9, 15, 16, 17, 40):
        text = TEXT[:size]
        protocol = parse_protocol("lmeval-wikitext-8")
        ours = make_windows(protocol, text, no_bos, ids="source", prefix=7).windows
        theirs = [
            utils.make_disjoint_window(p) for p in utils.get_rolling_token_windows(no_bos(text), 7, 8, 1)
        ]
        assert len(ours) == len(theirs)
        for window, (context, continuation) in zip(ours, theirs, strict=True):
            assert window.tokens.tolist() == (context + continuation)[-9:]
            assert window.scored == len(continuation)


def test_wikitext_is_split_and_detokenized_as_lm_eval_does() -> None:
    preprocess = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    pages = wikitext_pages(WIKI)
    assert [page.strip().split("\n")[0].strip() for page in pages] == ["= First =", "= Second ="]
    for page in [
        *pages,
        "it 's 5 @.@ 3 N (  a ) [ b  ] { c } \" d \" ' e ' 3 \N{DEGREE SIGN} C ; x : y ! z ?",
    ]:
        assert detokenize_wikitext(page) == preprocess.wikitext_detokenizer({"page": page})
    w = make_windows(parse_protocol("lmeval-wikitext-64"), WIKI, no_bos, ids="source", prefix=1)
    assert w.documents == tuple((len(preprocess.re.split(r"\s+", p)), len(p.encode())) for p in pages)


def test_wikitext_rows_are_joined_as_the_gptq_loop_joins_them() -> None:
    assert is_wikitext(WIKI)
    assert not is_wikitext(TEXT)
    assert wikitext_rows(" \n = A = \n \n x \n") == ["", " = A = \n", "", " x \n"]
    w = make_windows(parse_protocol("gptq-16"), WIKI, no_bos, ids="source")
    joined = "\n\n".join(wikitext_rows(WIKI))
    assert w.windows[0].tokens.tolist() == no_bos(joined)[:16]
    assert w.remarks


def test_a_shorter_context_is_adapted_to_out_loud() -> None:
    said: list[str] = []
    fitted = parse_protocol("strided-2048-512").fit(256, said.append)
    assert (fitted.name, fitted.stride) == ("strided-256-64", 64)
    assert "strided-256-64" in said[0]
    assert parse_protocol("llamacpp-512").fit(1024, said.append).name == "llamacpp-512"
    assert parse_protocol("lmeval-wikitext").fit(256, said.append).window == 256
    assert len(said) == 1


def test_equal_ids_hash_equal_and_others_do_not() -> None:
    a = make_windows(parse_protocol("gptq-20"), TEXT, letters, ids="source")
    b = make_windows(parse_protocol("gptq-20"), TEXT, letters, ids="source")
    c = make_windows(parse_protocol("llamacpp-20"), TEXT, letters, ids="source")
    assert a.ids_sha256 == b.ids_sha256 != c.ids_sha256


def test_groups_hold_every_window_once() -> None:
    w = make_windows(parse_protocol("strided-32-8"), TEXT, letters, ids="source")
    seen = sorted(int(i) for members, _, _ in w.groups() for i in members)
    assert seen == list(range(len(w.windows)))
    assert w.offsets[-1] == w.scored == len(letters(TEXT)) - 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lamacpp-512", "did you mean llamacpp-512"),
        ("gptq", "did you mean gptq-2048"),
        ("llamacpp-512-256", "unknown protocol"),
        ("strided-512", "unknown protocol"),
        ("llamacpp-2", "at least 4"),
        ("strided-16-32", "stride"),
    ],
)
def test_unknown_protocols_name_the_nearest(name: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        parse_protocol(name)


@pytest.mark.parametrize(
    ("text", "protocol", "expected"),
    [
        ("  \n ", "llamacpp-16", "empty"),
        ("x" * 30, "llamacpp-16", "at least 32 tokens, but this one has 31"),
        ("x" * 10, "gptq-16", "at least 16 tokens"),
    ],
)
def test_short_texts_are_refused(text: str, protocol: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        make_windows(parse_protocol(protocol), text, letters, ids="source")
