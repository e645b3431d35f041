"""A completion behind its encoded prompt: what the trainer reads, checked by every gate.

Not here: prompt and clip (mmar_jobs/encode.py, shared with inference). The chat template renders
the prompt only: it would drop the thinking of a completion, which is therefore appended verbatim.

Legend: S tokens.
"""

from typing import Final

import torch

from mmar_jobs.audio import HOP_LENGTH, SAMPLE_RATE_HZ, check_audio_tokens
from mmar_jobs.drawn_tokens import unpack_tokens
from mmar_jobs.encode import EncodedPrompt
from mmar_jobs.errors import DataError, GateError
from mmar_jobs.prompt import THINK_CLOSE, THINK_OPEN
from mmar_jobs.qlora import gates
from mmar_jobs.qlora.foreign import Processor
from mmar_jobs.qlora.gates import TokenIds
from mmar_jobs.qlora.packing import PolicyRow, TrainRow
from mmar_jobs.records import Finish, PolicyExample

TURN_OPEN: Final = "<|im_start|>"
TURN_CLOSE: Final = "<|im_end|>"


def token_ids(processor: Processor) -> TokenIds:
    """Look up the tokens that the gates need; a tokenizer without one of them is a DataError."""
    tokenizer = processor.tokenizer
    names = (THINK_OPEN, THINK_CLOSE, TURN_OPEN, TURN_CLOSE, processor.audio_token)
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    for name, token in zip(names, ids, strict=True):
        if token is None or token == tokenizer.unk_token_id:
            raise DataError(
                f"the model's tokenizer has no token {name}: give a Qwen3-Omni model folder"
            )
    return TokenIds(*ids)


def encode_example(
    processor: Processor,
    prompt: EncodedPrompt,
    completion: str,
    *,
    question_id: str,
    audio_sha256: str,
    weight: float,
) -> TrainRow:
    """Append the completion verbatim and the end of the turn; raises GateError when a gate fails.

    `audio_sha256` names the prompt's clip among the embeddings that training reads.
    """
    gates.check_has_labels(len(completion.strip()), question_id=question_id)
    ids = processor.tokenizer(completion + TURN_CLOSE + "\n", add_special_tokens=False)["input_ids"]
    row = TrainRow(
        question_id=question_id,
        input_ids_S=torch.cat((prompt.input_ids_S, torch.tensor(ids, dtype=torch.int64))),
        num_prompt_tokens=prompt.input_ids_S.numel(),
        weight=weight,
        audio_sha256=audio_sha256,
    )
    check_row(row, prompt, token_ids(processor))
    return row


def encode_policy_example(
    processor: Processor, prompt: EncodedPrompt, example: PolicyExample
) -> PolicyRow:
    """Append the tokens as they were drawn; raises GateError when a gate fails.

    Right or wrong, cut or malformed: nothing is asked of the tags. The tokens must be those of the
    completion that was rewarded.
    """
    question_id = example.question_id
    drawn = unpack_tokens(example.drawn_tokens)
    gates.check_has_labels(len(drawn.ids), question_id=question_id)
    decode, where = processor.tokenizer.decode, f"question {question_id} draw {example.draw}"
    ended = example.finish is Finish.STOP
    texts = [decode(drawn.ids[:end], skip_special_tokens=False) for end in (None, -1)[: 1 + ended]]
    if example.completion not in texts:
        raise GateError(
            f"{where}: its tokens say another text than its completion: another model's tokenizer "
            "drew them; give the --model that answered"
        )
    tokens = token_ids(processor)
    check_audio_tokens(
        prompt.input_ids_S.tolist().count(tokens.audio),
        duration_s=prompt.features_MF.shape[1] * HOP_LENGTH / SAMPLE_RATE_HZ,
        question_id=question_id,
    )
    gates.check_no_prompt_markers(drawn.ids.tolist(), tokens, question_id=question_id)
    return PolicyRow(
        question_id=question_id,
        input_ids_S=torch.cat((prompt.input_ids_S, torch.from_numpy(drawn.ids))),
        num_prompt_tokens=prompt.input_ids_S.numel(),
        weight=example.weight,
        audio_sha256=example.audio_sha256,
        advantage=example.advantage,
        engine_C=torch.from_numpy(drawn.logprobs),
    )


def check_row(row: TrainRow, prompt: EncodedPrompt, tokens: TokenIds) -> None:
    """Run every gate over one encoded example; raises GateError naming the question."""
    prompt_ids = prompt.input_ids_S.tolist()
    unlabelled_ids = row.input_ids_S[: row.num_prompt_tokens].tolist()
    label_ids = row.input_ids_S[row.num_prompt_tokens :].tolist()
    question_id = row.question_id
    num_audio_tokens = unlabelled_ids.count(tokens.audio)
    gates.check_has_labels(len(label_ids), question_id=question_id)
    gates.check_labels_are_completion(prompt_ids, unlabelled_ids, question_id=question_id)
    duration_s = prompt.features_MF.shape[1] * HOP_LENGTH / SAMPLE_RATE_HZ
    check_audio_tokens(num_audio_tokens, duration_s=duration_s, question_id=question_id)
    gates.check_no_prompt_markers(label_ids, tokens, question_id=question_id)
    gates.check_think_tags(prompt_ids, label_ids, tokens, question_id=question_id)
    gates.check_turn_closed(label_ids, tokens, question_id=question_id)
