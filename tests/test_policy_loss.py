"""Tests of a policy's loss: against a plain implementation in fp64, and against TRL's."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.loss import linear_token_loss, token_logprobs
from mmar_jobs.qlora.memory import LOSS_CHUNK
from mmar_jobs.qlora.policy import TokenFacts, divergence, policy_loss, token_sums
from mmar_jobs.qlora.recipes import PolicyRecipe

HIDDEN, VOCABULARY = 8, 30
LENGTHS = (5, 9, 3, 7)
RECIPES = {
    "plain": PolicyRecipe(),
    "no importance": PolicyRecipe(max_importance=0),
    "tight": PolicyRecipe(clip_low=0.05, clip_high=0.1, max_importance=1.05),
    "kl": PolicyRecipe(kl_weight=0.3),
    "with examples": PolicyRecipe(example_weight=0.5, kl_weight=0.1),
}


def drawn(num_tokens: int, *, seed: int = 0, spread: float = 0.3) -> tuple[Any, ...]:
    """Random hidden states, head and targets, and facts near the log-probabilities these give."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden_CH, head_VH = normal(num_tokens, HIDDEN), 0.5 * normal(VOCABULARY, HIDDEN)
    target_C = torch.randint(0, VOCABULARY, (num_tokens,), generator=generator)
    logprob_C = (hidden_CH @ head_VH.T).log_softmax(-1).gather(1, target_C[:, None])[:, 0]
    old_C = logprob_C + spread * normal(num_tokens)
    facts = TokenFacts(
        advantage=normal(num_tokens),
        engine=old_C + 0.5 * spread * normal(num_tokens),
        old=old_C,
        base=logprob_C + spread * normal(num_tokens),
        scale=normal(num_tokens).abs(),
        example=normal(num_tokens).abs(),
    )
    return hidden_CH, head_VH, target_C, facts


def plain_loss(logprob_C: Tensor, facts: TokenFacts, recipe: PolicyRecipe) -> Tensor:
    """The loss token by token, as its papers write it."""
    total = torch.zeros((), dtype=torch.float64)
    for index in range(len(logprob_C)):
        logprob, advantage = logprob_C[index], facts.advantage[index]
        ratio = torch.exp(logprob - facts.old[index])
        low, high = 1 - recipe.clip_low, 1 + recipe.clip_high
        inside = low if ratio < low else min(ratio, high)
        surrogate = min(inside * advantage, ratio * advantage)
        weight = torch.exp(facts.old[index] - facts.engine[index])
        if recipe.max_importance == 0:
            weight = torch.ones(())
        elif weight > recipe.max_importance:
            weight = torch.tensor(recipe.max_importance, dtype=torch.float64)
        log_ratio = facts.base[index] - logprob
        kl = torch.exp(log_ratio) - log_ratio - 1
        policy = -weight * surrogate + recipe.kl_weight * kl
        total = total + facts.scale[index] * policy - facts.example[index] * logprob
    return total


@pytest.mark.parametrize("name", RECIPES)
def test_loss_and_gradient_are_those_of_a_plain_implementation(name: str) -> None:
    """In fp64, through a softmax of the whole vocabulary, to 1e-10."""
    recipe = RECIPES[name]
    hidden_CH, head_VH, target_C, facts = drawn(60)
    plain_CH = hidden_CH.clone().requires_grad_()
    logprob_C = (plain_CH @ head_VH.T).log_softmax(-1).gather(1, target_C[:, None])[:, 0]
    expected = plain_loss(logprob_C, facts, recipe)
    expected.backward()
    ours_CH = hidden_CH.clone().requires_grad_()
    loss, found_C = linear_token_loss(
        ours_CH, head_VH, target_C, lambda own_C: policy_loss(own_C, facts, recipe)
    )
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(found_C, logprob_C, atol=1e-10)
    assert plain_CH.grad is not None
    assert ours_CH.grad is not None
    assert (ours_CH.grad - plain_CH.grad).abs().max() < 1e-10
    assert plain_CH.grad.abs().max() > 1e-2


def test_gradient_scales_with_what_follows() -> None:
    """A factor on the loss is a factor on its gradient."""
    hidden_CH, head_VH, target_C, facts = drawn(9)
    grads = []
    for factor in (1.0, 3.0):
        ours_CH = hidden_CH.clone().requires_grad_()
        loss, _ = linear_token_loss(
            ours_CH, head_VH, target_C, lambda own_C: policy_loss(own_C, facts, PolicyRecipe())
        )
        (factor * loss).backward()
        grads.append(ours_CH.grad)
    assert torch.allclose(3 * grads[0], grads[1])


def test_chunks_do_not_matter() -> None:
    """More tokens than a chunk holds: the same log-probabilities and gradient as all at once."""
    hidden_CH, head_VH, target_C, facts = drawn(LOSS_CHUNK + 300, seed=3)
    logprob_C = (hidden_CH @ head_VH.T).log_softmax(-1).gather(1, target_C[:, None])[:, 0]
    assert torch.allclose(logprob_C, token_logprobs(hidden_CH, head_VH, target_C))
    ours_CH, plain_CH = hidden_CH.clone().requires_grad_(), hidden_CH.clone().requires_grad_()
    linear_token_loss(
        ours_CH, head_VH, target_C, lambda own_C: policy_loss(own_C, facts, PolicyRecipe())
    )[0].backward()
    own_C = (plain_CH @ head_VH.T).log_softmax(-1).gather(1, target_C[:, None])[:, 0]
    policy_loss(own_C, facts, PolicyRecipe()).backward()
    assert ours_CH.grad is not None
    assert torch.allclose(ours_CH.grad, plain_CH.grad)  # type: ignore[arg-type]


def test_clipped_tokens_give_no_gradient_and_are_counted() -> None:
    """Beyond its side a good token is not raised further, a bad one not lowered further."""
    recipe = PolicyRecipe(clip_low=0.2, clip_high=0.3, max_importance=0)
    ratio_C = torch.tensor([0.5, 0.5, 1.0, 1.0, 1.5, 1.5], dtype=torch.float64)
    advantage_C = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    zero_C = torch.zeros(6, dtype=torch.float64)
    facts = TokenFacts(advantage_C, zero_C, zero_C, zero_C, torch.ones_like(zero_C), zero_C)
    logprob_C = ratio_C.log().requires_grad_()
    policy_loss(logprob_C, facts, recipe).backward()
    assert [-0.5, 0, -1, 1, 0, 1.5] == pytest.approx(logprob_C.grad.tolist())  # type: ignore[union-attr]
    tokens, low, high, kl_old, *_ = token_sums(logprob_C.detach(), facts, recipe).tolist()
    assert (6, 1, 1) == (tokens, low, high)
    assert kl_old == pytest.approx(2 * (0.5 - 1 - torch.tensor(0.5).log()) + 2 * (0.5 - 0.405465))


def test_importance_is_cut_and_counted() -> None:
    """A token that the engine found far less likely counts `max_importance` times and no more."""
    recipe = PolicyRecipe(max_importance=2.0)
    one_C = torch.ones(3, dtype=torch.float64)
    engine_C = -torch.tensor([1.0, 1.5, 9.0], dtype=torch.float64).log()
    facts = TokenFacts(one_C, engine_C, 0 * one_C, 0 * one_C, one_C, 0 * one_C)
    logprob_C = (0 * one_C).requires_grad_()
    policy_loss(logprob_C, facts, recipe).backward()
    assert [-1, -1.5, -2] == pytest.approx(logprob_C.grad.tolist())  # type: ignore[union-attr]
    assert 1 == token_sums(logprob_C.detach(), facts, recipe)[5]


@given(st.floats(-20, 8))
def test_divergence_is_never_negative(log_ratio: float) -> None:
    """Unlike the plain mean of log ratios, it cannot hide a drift by its sign."""
    assert divergence(torch.tensor(log_ratio, dtype=torch.float64)) >= 0


def test_divergence_estimates_kullback_and_leibler() -> None:
    """Its mean over tokens drawn from p is KL(p || q)."""
    p_V, q_V = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    log_ratio_V = (q_V / p_V).log()
    assert (p_V * divergence(log_ratio_V)).sum() == pytest.approx(-(p_V * log_ratio_V).sum().item())


@pytest.mark.parametrize(
    "wrong", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": 0.0}, {"max_kl": -1.0}]
)
def test_recipes_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    """One line says which and what it must be."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        PolicyRecipe(**wrong)  # type: ignore[arg-type]


class Theirs:
    """What TRL's loss asks of its trainer, which gives it the log-probabilities it is to use."""

    importance_sampling_level = "token"
    aux_loss_enabled = _entropy_bonus_enabled = False
    top_entropy_quantile = 1.0
    off_policy_mask_threshold = None
    vllm_importance_sampling_correction = use_vllm = True
    max_completion_length = 11
    current_gradient_accumulation_steps = 1

    def __init__(self, logprob_BT: Tensor, recipe: PolicyRecipe, loss_type: str) -> None:
        self.logprob_BT, self.loss_type = logprob_BT, loss_type
        self.epsilon_low, self.epsilon_high = recipe.clip_low, recipe.clip_high
        self.beta = recipe.kl_weight
        self.args = SimpleNamespace(delta=None, use_bias_correction_kl=False)
        self.model = SimpleNamespace(training=True)
        self.accelerator = SimpleNamespace(
            gather=lambda tensor: tensor, reduce=lambda tensor, reduction: tensor
        )
        self._metrics: Any = defaultdict(lambda: defaultdict(list))

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Any, Any, None]:
        return self.logprob_BT, torch.zeros_like(self.logprob_BT), None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("name", ["plain", "tight", "kl"])
def test_loss_and_gradient_are_those_of_trl(name: str, loss_type: str) -> None:
    """Where the settings coincide: both ways to weigh tokens, unequal clipping, cut importance."""
    from trl import GRPOTrainer

    recipe = RECIPES[name]
    _, _, _, facts = drawn(sum(LENGTHS), spread=0.2)
    logprob_C = facts.base + 0.2 * torch.randn(len(facts.base)).double()
    advantage_B = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64)
    mask_BT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]

    def padded(column_C: Tensor) -> Tensor:
        full_BT = torch.full(mask_BT.shape, -1.0, dtype=torch.float64)
        return full_BT.masked_scatter(mask_BT, column_C)

    logprob_BT = padded(logprob_C).requires_grad_()
    ids_BT = torch.zeros(mask_BT.shape, dtype=torch.int64)
    weight_C = (facts.old - facts.engine).exp().clamp(max=recipe.max_importance)
    expected = GRPOTrainer._compute_loss(
        Theirs(logprob_BT, recipe, loss_type),
        None,
        {
            "prompt_ids": ids_BT,
            "prompt_mask": ids_BT,
            "completion_ids": ids_BT,
            "completion_mask": mask_BT.double(),
            "advantages": advantage_B,
            "old_per_token_logps": padded(facts.old),
            "ref_per_token_logps": padded(facts.base),
            "importance_sampling_ratio": padded(weight_C),
        },
    )
    expected.backward()
    owner_C = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    length_B = torch.tensor(LENGTHS if loss_type == "grpo" else (Theirs.max_completion_length,) * 4)
    ours = facts._replace(
        advantage=advantage_B[owner_C],
        scale=1 / length_B.double()[owner_C] / 4,
        example=torch.zeros_like(facts.example),
    )
    leaf_C = logprob_C.clone().requires_grad_()
    loss = policy_loss(leaf_C, ours, recipe)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert logprob_BT.grad is not None
    assert torch.allclose(leaf_C.grad, logprob_BT.grad[mask_BT], atol=1e-10)  # type: ignore[arg-type]
