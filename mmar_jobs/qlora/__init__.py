"""Training: LoRA on attention and on every expert of the Qwen3-Omni thinker.

Not here: what to train on (stages/filter), where artifacts live (store), how clips are decoded
(audio).

The order of work: `load` a model, `attach` LoRA, `encode` examples, embed their clips once
(`audio_embeds`), `train` (trainer: pack, forward, loss, step, checkpoint), `export`, `merge`;
`audit` shows what is trained and refuses what must not be.
"""
