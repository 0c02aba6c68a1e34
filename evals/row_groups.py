"""Rows of token ids in an order and in groups that cost least to compute."""

BATCH_TOKENS = 4096

LARGEST_GROUP = 32  # rows that share a beginning

PADDING = 0.0  # of a batch's longest row, at most: with none, no row is computed longer than it is


def alike(ordered: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Rows in lexical order -> groups that begin alike: a row joins where a quarter of it at least is shared
    and fewer tokens are computed so than with a group of its own."""
    out: list[list[tuple[int, ...]]] = []
    shared = 0
    for ids in ordered:
        if out:
            group = out[-1]
            common = next(
                (i for i, (a, b) in enumerate(zip(group[-1], ids, strict=False)) if a != b),
                min(len(group[-1]), len(ids)),
            )
            common = min(common, shared)
            if (
                len(group) < LARGEST_GROUP
                and 4 * common >= len(ids)
                and len(group) * common > (len(group) - 1) * shared
            ):
                group.append(ids)
                shared = common
                continue
        out.append([ids])
        shared = len(ids)
    return out


def batches(ordered: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Rows sorted by falling length -> batches of rows nearly as long as their first, at most
    ``BATCH_TOKENS`` together."""
    out: list[list[tuple[int, ...]]] = []
    for ids in ordered:
        batch = out[-1] if out else None
        if (
            batch
            and len(ids) >= len(batch[0]) * (1 - PADDING)
            and (len(batch) + 1) * len(batch[0]) <= BATCH_TOKENS
        ):
            batch.append(ids)
        else:
            out.append([ids])
    return out
