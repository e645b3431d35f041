"""A policy gradient on a GPU: the loss of its tokens against the CPU's, and a training that stays.

Not here: speed (mmar-jobs bench train --objective grpo).
"""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from mmar_jobs.qlora.loss import linear_token_loss, token_logprobs
from mmar_jobs.qlora.policy import PolicyGradient, TokenFacts, policy_loss
from mmar_jobs.qlora.recipes import PolicyRecipe
from mmar_jobs.qlora.trainer import train
from tests import qlora_cases as cases

GPU = torch.device("cuda")
RECIPE = PolicyRecipe(kl_weight=0.1, example_weight=0.2)


def test_token_loss_is_that_of_the_cpu() -> None:
    """More tokens than a chunk holds, a vocabulary of several tiles: loss, tokens and gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden_CH, head_VH = (torch.randn(n, 64, generator=generator) / 4 for n in (1500, 9001))
    target_C = torch.randint(0, 9001, (1500,), generator=generator)
    columns = [torch.randn(1500, generator=generator) for _ in range(6)]
    old_C = token_logprobs(hidden_CH, head_VH, target_C)
    near_C = old_C + 0.2 * columns[0]
    found = []
    for device in (torch.device("cpu"), GPU):
        parts = (columns[1], old_C, near_C, old_C, columns[2].abs(), columns[3].abs())
        facts = TokenFacts(*(column.to(device) for column in parts))
        leaf_CH = hidden_CH.to(device, copy=True).requires_grad_()
        loss, logprob_C = linear_token_loss(
            leaf_CH,
            head_VH.to(device),
            target_C.to(device),
            lambda own_C, facts=facts: policy_loss(own_C, facts, RECIPE),
        )
        loss.backward()
        assert leaf_CH.grad is not None
        found.append((loss.item(), logprob_C.cpu(), leaf_CH.grad.cpu()))
    (loss, logprob_C, grad_CH), (other, other_C, other_CH) = found
    assert other == pytest.approx(loss, rel=1e-2)
    torch.testing.assert_close(other_C, logprob_C, rtol=1e-2, atol=5e-2)
    torch.testing.assert_close(other_CH, grad_CH, rtol=1e-2, atol=5e-2)


def test_training_starts_on_policy() -> None:
    """What the trainer says before the first step it says in it, to a GPU's rounding."""
    lora = cases.adapted(fill=False)
    lora.model.to(GPU)
    rows, audio = cases.make_rows([(12, 6), (10, 9), (15, 4), (9, 7)])
    candidates = cases.as_candidates(lora, rows, audio)
    result = train(lora, candidates, cases.TRAIN, audio=audio, objective=PolicyGradient(RECIPE))
    assert result.metrics[0]["kl_old"] < 1e-4
    assert result.facts["engine_mean_abs_nats"] < 0.05
