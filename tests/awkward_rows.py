"""Rows of weights, and importances of columns, at which block quantizers part ways."""

import numpy as np


def rows_of(kind: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(r, c) float32, c a multiple of 32; ``kind`` is one of ``ROWS``."""
    random = np.random.default_rng([seed, ROWS.index(kind)])
    normal = random.standard_normal(shape).astype(np.float32)
    blocks = np.exp(6 * random.standard_normal((shape[0], shape[1] // 32))).repeat(32, 1)
    outlier = np.where(
        np.arange(shape[1]) == random.integers(0, shape[1], (shape[0], 1)), 1000, 1e-3 * normal
    )
    made = {
        "normal": 0.02 * normal,
        "bf16": (normal.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "heavy tails": 0.02 * random.standard_t(1.5, shape),
        "constant": np.broadcast_to(normal[:, :1], shape),
        "zero": np.zeros(shape),
        "negative zero": np.where(normal > 0, -0.0, 0.0),
        "denormal": random.integers(-(2**20), 2**20, shape) * 2.0**-149,
        "tiny": 1e-37 * normal.astype(np.float64),
        "huge": np.clip(1.5e38 * normal.astype(np.float64), -3.4e38, 3.4e38),
        "large": 1e4 * normal,
        "one outlier": outlier,
        "sparse": normal * (random.random(shape) < 0.05),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "ternary": 0.1 * np.sign(normal) * (np.abs(normal) > 0.5),
        "integers": np.round(4 * normal),
        "blocks of every size": normal * blocks,
    }
    return np.ascontiguousarray(made[kind], np.float32)


ROWS = (
    "normal", "bf16", "heavy tails", "constant", "zero", "negative zero", "denormal", "tiny", "huge", "large",
    "one outlier", "sparse", "positive", "negative", "ternary", "integers", "blocks of every size",
)  # fmt: skip


def importance_of(kind: str, columns: int, seed: int = 0) -> np.ndarray | None:
    """(c,) float32, or None; ``kind`` is one of ``IMPORTANCES``."""
    random = np.random.default_rng([seed, IMPORTANCES.index(kind)])
    plain = random.lognormal(0, 2, columns)
    return {
        "none": None,
        "lognormal": plain.astype(np.float32),
        "zeros": np.zeros(columns, np.float32),
        "some zeros": np.float32(plain * (random.random(columns) < 0.3)),
        "one hot": np.float32(np.arange(columns) == random.integers(columns)),
        "huge range": np.exp(random.uniform(-80, 80, columns)).astype(np.float32),
    }[kind]


IMPORTANCES = ("none", "lognormal", "zeros", "some zeros", "one hot", "huge range")
