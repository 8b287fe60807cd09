"""Text and prompt are arranged in order, with every token once, whatever the padding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptune.prompts import layout


@st.composite
def batches(draw):
    rows = draw(st.integers(1, 4))
    seq = draw(st.integers(1, 9))
    mask = draw(
        st.lists(
            st.lists(st.integers(0, 1), min_size=seq, max_size=seq), min_size=rows, max_size=rows
        )
    )
    return torch.tensor(mask)


@settings(max_examples=200, deadline=None)
@given(mask=batches(), padding=st.sampled_from(["left", "right"]), data=st.data())
def test_every_token_occurs_once_and_in_order(mask, padding, data):
    """Every text has a prompt of its own length in its own place."""
    batch, seq = mask.shape
    k = data.draw(st.integers(0, 5))
    lengths = data.draw(st.lists(st.integers(0, k), min_size=batch, max_size=batch))
    places = data.draw(st.lists(st.integers(0, 2), min_size=batch, max_size=batch))
    virtual = torch.arange(k) < torch.tensor(lengths)[:, None]
    ids = torch.arange(100, 100 + batch * seq).view(batch, seq)
    order = layout.prompt_order(mask, virtual, torch.tensor(places)[:, None], padding)
    placed = layout.place(ids, torch.arange(k), order).tolist()
    real = layout.place(mask, virtual, order).tolist()
    for row, (own, before) in enumerate(zip(lengths, places, strict=True)):
        text = ids[row][mask[row] != 0].tolist()
        expected = [*text[:before], *range(own), *text[before:]]
        length = len(expected)
        zeros = [0] * (k + seq - length)
        at = slice(0, length) if padding == "right" else slice(k + seq - length, k + seq)
        assert placed[row][at] == expected
        ones = [1] * length
        assert real[row] == (ones + zeros if padding == "right" else zeros + ones)
        assert sorted(placed[row]) == sorted([*ids[row].tolist(), *range(k)])


@settings(max_examples=100, deadline=None)
@given(mask=batches(), k=st.integers(1, 5), before=st.integers(0, 2))
def test_position_ids_leave_positions_for_the_prompt(mask, k, before):
    start = 10
    ids = (mask.cumsum(dim=1) - 1).clamp_min(0) + start
    prompt = torch.ones(k)
    order = layout.prompt_order(mask, prompt, before)
    positions = layout.place_positions(ids, mask, prompt, before, order)
    for row in range(len(mask)):
        length = int(mask[row].sum())
        if length >= max(before, 1):
            expected = list(range(start, start + length + k))
            assert positions[row, : length + k].tolist() == expected
