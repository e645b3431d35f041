"""Packing: rows hold every example once and whole, and no example sees its neighbours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar_jobs.errors import GateError
from mmar_jobs.qlora.attention import packed_rows, padded_index
from mmar_jobs.qlora.loss import linear_cross_entropy, token_coefficients
from mmar_jobs.qlora.packing import (
    digest_rows,
    pack,
    pack_row,
    schedule_steps,
    split_over_long,
)
from mmar_jobs.qlora.step import row_hidden, row_loss
from tests import qlora_cases as cases

LENGTHS = ((12, 9), (9, 20), (10, 1), (30, 5), (9, 9))
TOLERANCE = 1e-5


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    budget=st.integers(40, 90),
    seed=st.integers(0, 100),
)
def test_rows_hold_every_example_once_within_budget(
    lengths: list[int], budget: int, seed: int
) -> None:
    """No row is over budget and each example is in exactly one, with its labels and positions."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        cases.TrainRow(f"q{i}", torch.randint(0, 99, (n + 1,), generator=generator), 1, 1.0, "")
        for i, n in enumerate(lengths)
    ]
    packed = list(pack(rows, budget + 1))
    assert sorted(member for row in packed for member in row.members) == list(range(len(rows)))
    for row in packed:
        assert sum(row.lengths) == row.input_ids_S.numel() <= budget + 1
        assert torch.equal(row.target_C, row.input_ids_S[row.predict_C + 1])
        expected = torch.cat([torch.arange(n) for n in row.lengths])
        assert all(torch.equal(expected, positions[0]) for positions in row.position_ids_41S)


@given(num_rows=st.integers(1, 50), per_step=st.integers(1, 9), seed=st.integers(0, 50))
def test_an_epoch_takes_each_example_once(num_rows: int, per_step: int, seed: int) -> None:
    """Every epoch is a permutation.

    The same seed gives the same one, epochs differ from each other.
    """
    options = {"examples_per_step": per_step, "num_epochs": 2, "seed": seed}
    steps = schedule_steps(num_rows, **options)
    assert steps == schedule_steps(num_rows, **options)
    flat = [index for step in steps for index in step]
    assert sorted(flat[:num_rows]) == sorted(flat[num_rows:]) == list(range(num_rows))
    assert all(1 <= len(step) <= per_step for step in steps)
    if num_rows > 20:
        assert flat[:num_rows] != flat[num_rows:]


def test_packed_logits_equal_separate() -> None:
    """Every example in a packed row has the logits that it has alone."""
    lora = cases.adapted()
    rows, audio = cases.make_rows(LENGTHS)
    packed = pack_row(rows, [3, 0, 4, 1, 2])
    with torch.no_grad():
        hidden_SH = row_hidden(lora, rows, packed, audio)
        logits_SV = lora.model.lm_head(hidden_SH)
    for member, logits in zip(packed.members, logits_SV.split(packed.lengths), strict=True):
        expected = cases.separate_logits(lora.model, rows[member], audio)
        assert (expected - logits).abs().max() <= TOLERANCE


def test_packed_equals_transformers_own_packing() -> None:
    """Our attention by lengths agrees with transformers' mask from restarting positions."""
    lora = cases.adapted()
    rows, audio = cases.make_rows(LENGTHS)
    packed = pack_row(rows, range(len(rows)))
    ours = row_hidden(lora, rows, packed, audio)
    embeds = lora.model.model.embed_tokens(packed.input_ids_S)
    embeds[packed.input_ids_S == cases.thinker_audio_token()] = torch.cat(list(audio.values()))
    theirs = lora.model.model(
        inputs_embeds=embeds[None],
        position_ids=packed.position_ids_41S,
        attention_mask=None,
        use_cache=False,
    ).last_hidden_state[0]
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_a_neighbour_changes_nothing() -> None:
    """Replacing one example of a row leaves the others alone.

    But for rounding: the GEMMs' blocks of rows per expert have other sizes.
    """
    lora = cases.adapted()
    rows, audio = cases.make_rows(LENGTHS)
    others, _ = cases.make_rows(LENGTHS, seed=7)
    packed = pack_row(rows, [0, 1, 2])
    with torch.no_grad():
        before = row_hidden(lora, rows, packed, audio)
        mixed = [others[0], *rows[1:]]
        after = row_hidden(lora, mixed, pack_row(mixed, [0, 1, 2]), audio)
    first = packed.lengths[0]
    assert (before[first:] - after[first:]).abs().max() <= TOLERANCE
    assert (before[:first] - after[:first]).abs().max() > 0.1


@pytest.mark.parametrize("weighting", ["example", "token"])
def test_packed_loss_and_gradients_equal_separate(weighting: str) -> None:
    """The step's loss and gradients are the weighted mean over examples one by one."""
    weights = (1.0, 2.0, 0.5, 1.0, 3.0)
    lora = cases.adapted()
    rows, audio = cases.make_rows(LENGTHS, weights=weights)
    counts = [row.num_labels for row in rows]
    coefficients = token_coefficients(weights, counts, weighting)
    total = torch.zeros(())
    for packed in pack(rows, 60):
        part, _ = row_loss(lora, rows, packed, audio=audio, coefficients=coefficients)
        total = total + part
    ours = torch.autograd.grad(total, list(lora.factors().values()))
    sums = []
    for row in rows:
        hidden_SH = row_hidden(lora, [row], pack_row([row], [0]), audio)
        labels = row.input_ids_S[row.num_prompt_tokens :]
        logits = lora.model.lm_head(hidden_SH[row.num_prompt_tokens - 1 : -1])
        sums.append(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    if weighting == "example":
        means = [w * nll / n for w, nll, n in zip(weights, sums, counts, strict=True)]
        expected = torch.stack(means).sum() / sum(weights)
    else:
        weighted = torch.stack([w * nll for w, nll in zip(weights, sums, strict=True)]).sum()
        expected = weighted / sum(w * n for w, n in zip(weights, counts, strict=True))
    assert abs(float(expected.detach()) - float(total.detach())) <= TOLERANCE
    theirs = torch.autograd.grad(expected, list(lora.factors().values()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_doubling_a_weight_changes_the_gradient_as_the_formula_says() -> None:
    """With weights (2, 1) the gradient is 2/3 of the first example's plus 1/3 of the second's."""
    lora = cases.adapted()

    def gradient(weights: tuple[float, ...]) -> list[torch.Tensor]:
        rows, audio = cases.make_rows(LENGTHS[:2])
        used = [(row, w) for row, w in zip(rows, weights, strict=True) if w]
        rows = [row for row, _ in used]
        counts = [row.num_labels for row in rows]
        coefficients = token_coefficients([w for _, w in used], counts, "example")
        packed = pack_row(rows, range(len(rows)))
        loss, _ = row_loss(lora, rows, packed, audio=audio, coefficients=coefficients)
        return list(torch.autograd.grad(loss, list(lora.factors().values())))

    first, second, even, doubled = map(gradient, ((1, 0), (0, 1), (1, 1), (2, 1)))
    mixed = [(2 * a + b) / 3 for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(doubled, mixed, rtol=1e-4, atol=1e-7)
    assert any((a - b).abs().max() > 1e-5 for a, b in zip(even, doubled, strict=True))


@given(st.integers(1, 60), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_chunked_loss_equals_the_plain_one(num_tokens: int, seed: int) -> None:
    """Loss, token losses and the gradient equal torch's cross-entropy (fp64)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, 5, generator=generator, dtype=torch.float64)
    head = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 11, (num_tokens,), generator=generator)
    coefficient = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    hidden.requires_grad_()
    loss, nll = linear_cross_entropy(hidden, head, target, coefficient)
    expected_nll = torch.nn.functional.cross_entropy(hidden @ head.T, target, reduction="none")
    torch.testing.assert_close(nll, expected_nll.detach())
    expected = (expected_nll * coefficient).sum()
    torch.testing.assert_close(loss, expected)
    (actual_grad,) = torch.autograd.grad(loss, hidden)
    (expected_grad,) = torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(actual_grad, expected_grad)


def test_over_long_examples_are_dropped_whole() -> None:
    """What does not fit is dropped and counted; nothing that is kept is shorter than it was."""
    rows, _ = cases.make_rows(LENGTHS)
    kept, num_dropped = split_over_long(rows, 29)
    assert ([row.question_id for row in kept], num_dropped) == (["q0", "q1", "q2", "q4"], 1)
    assert all(row.num_tokens == sum(LENGTHS[int(row.question_id[1:])]) for row in kept)


def test_clip_of_another_length_is_refused() -> None:
    """Embeddings that do not fit the row's audio tokens are a GateError naming the question."""
    lora = cases.adapted()
    rows, audio = cases.make_rows(LENGTHS[:1])
    audio["clip0"] = audio["clip0"][:-1]
    with pytest.raises(GateError, match="q0: 7 audio tokens in their rows but 6"):
        row_hidden(lora, rows, pack_row(rows, [0]), audio)


def test_generation_keeps_its_attention() -> None:
    """Packed attention is on inside the block only."""
    model = cases.thinker()
    before = model.model.config._attn_implementation
    with packed_rows(model):
        assert model.model.config._attn_implementation != before
    assert before == model.model.config._attn_implementation


def test_padding_repeats_the_last_token() -> None:
    """Indices beyond a sequence point at its own last token, never into a neighbour."""
    index = padded_index([2, 3], device=torch.device("cpu"))
    assert index.tolist() == [[0, 1, 1], [2, 3, 4]]


def test_row_digest_sees_every_field() -> None:
    """Another weight, clip, token or label start gives another digest."""
    rows, _ = cases.make_rows(LENGTHS[:2])
    digests = {digest_rows(rows), digest_rows(rows[::-1])}
    row = rows[0]
    for change in (
        {"weight": 2.0},
        {"audio_sha256": "x"},
        {"num_prompt_tokens": 3},
        {"input_ids_S": row.input_ids_S + 1},
    ):
        fields = {name: getattr(row, name) for name in cases.TrainRow.__slots__} | change
        digests.add(digest_rows([cases.TrainRow(**fields), rows[1]]))
    assert len(digests) == 6
