"""Notes of one kind become one line."""

from quantize.artifact.artifact import grouped


def test_notes_of_many_layers_are_one() -> None:
    notes = [
        (f"model.layers.{n}.{part}.weight", "Q5_0 instead of Q4_K", "rows of 640")
        for n in range(3)
        for part in ("a", "b")
    ]
    notes += [("lm_head.weight", "kept", "tied"), ("model.layers.7.c.weight", "kept", "tied")]
    assert grouped(notes) == [
        ("model.layers.*.a.weight (3), model.layers.*.b.weight (3)", "Q5_0 instead of Q4_K", "rows of 640"),
        ("lm_head.weight, model.layers.7.c.weight", "kept", "tied"),
    ]
