"""What a job's calibration text becomes: full paths, in a mixture too."""

from pathlib import Path

import pytest

from jobs.load import load_job
from jobs.texts import Texts
from quantize.errors import BadInput
from quantize.recipe import CalibrationOptions


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("wiki.txt", "{0}/wiki.txt"),
        ("wiki.txt*0.5,stdlib*0.25,self*0.25", "{0}/wiki.txt*0.5,stdlib*0.25,self*0.25"),
        ("folder,org/name:train:text*2", "{0}/folder,org/name:train:text*2"),
        ("stdlib", "stdlib"),
        ("self", "self"),
    ],
)
def test_files_get_their_full_paths(source: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    job = tmp_path / "job.yaml"
    job.write_text(f"models: [m]\nrecipes: [gptq-int4]\ncalibration: '{source}'\n")
    loaded = load_job(job)
    assert loaded.calibration.source == source
    options = Texts(loaded, tmp_path).calibration(loaded.calibration)
    assert options == CalibrationOptions(source=found.format(tmp_path))


def test_a_weight_that_is_none(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("models: [m]\nrecipes: [gptq-int4]\ncalibration: 'a.txt*x,b.txt'\n")
    loaded = load_job(job)
    with pytest.raises(BadInput, match="weight 'x' is not a number"):
        Texts(loaded, tmp_path).calibration(loaded.calibration)
