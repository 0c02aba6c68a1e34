"""What --calibration takes: places, weights, and what cannot be read."""

from pathlib import Path

import pytest

from quantize.calibration.sources import Dataset, Part, parse_sources, spell_sources
from quantize.errors import BadInput


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("stdlib", [("stdlib", 1)]),
        ("self", [("self", 1)]),
        ("wiki.txt", [("wiki.txt", 1)]),
        ("wiki.txt*0.5,code.txt*0.25,self*.25", [("wiki.txt", 0.5), ("code.txt", 0.25), ("self", 0.25)]),
        (" a.txt * 2 , b.txt", [("a.txt", 2), ("b.txt", 1)]),
        ("org/name:train:text*3,stdlib", [("org/name:train:text", 3), ("stdlib", 1)]),
    ],
)
def test_parts(source: str, parts: list[tuple[str, float]]) -> None:
    found = parse_sources(source)
    assert found == tuple(Part(*part) for part in parts)
    assert parse_sources(spell_sources(found)) == found


def test_what_exists_is_taken_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "a,b*0.5"
    odd.write_text("text")
    assert parse_sources(str(odd)) == (Part(str(odd)),)
    assert parse_sources("a,b*0.5", tmp_path) == (Part("a,b*0.5"),)
    star = tmp_path / "c*2"
    star.write_text("text")
    assert parse_sources(f"{star},{star}*2") == (Part(str(star)), Part(str(star), 2.0))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.txt*half", "weight 'half' is not a number; expected PLACE"),
        ("a.txt*", "weight '' is not a number"),
        ("a.txt*0,b.txt", "weight 0 is not above 0"),
        ("a.txt*-1", "weight -1 is not above 0"),
        ("a.txt*nan", "weight nan is not above 0"),
        ("a.txt,,b.txt", "a place is empty"),
        ("*0.5", "a place is empty"),
        ("", "a place is empty"),
        ("auto,stdlib", "auto stands alone"),
    ],
)
def test_weights_that_are_none(source: str, message: str) -> None:
    with pytest.raises(BadInput, match="calibration '") as error:
        parse_sources(source)
    assert message in str(error.value)


def test_more_places_than_a_file_name_holds() -> None:
    source = ",".join(f"{'x' * 50}{number}.txt" for number in range(20))
    assert len(parse_sources(source)) == 20


@pytest.mark.parametrize(
    ("place", "dataset"),
    [
        ("org/name", Dataset("org/name")),
        ("org/name:config", Dataset("org/name", config="config")),
        ("org/name:test:text", Dataset("org/name", split="test", column="text")),
        ("org/name::text", Dataset("org/name", column="text")),
        ("org/name:config:test:text", Dataset("org/name", "config", "test", "text")),
    ],
)
def test_datasets(place: str, dataset: Dataset) -> None:
    assert Dataset.parse(place) == dataset


@pytest.mark.parametrize("place", ["name", "org/", "/name", "a/b/c", "org/name:a:b:c:d", "wiki"])
def test_what_is_no_dataset(place: str) -> None:
    with pytest.raises(BadInput, match="neither a text file nor a folder nor a Hub dataset"):
        Dataset.parse(place)


def test_files_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", ".hidden/c.txt", "a/.cache"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    assert Part(str(tmp_path)).files() == [tmp_path / "a/z.txt", tmp_path / "b.txt"]
    assert Part(str(tmp_path / "b.txt")).files() == [tmp_path / "b.txt"]
    assert Part("self").files() == Part("org/name").files() == []
