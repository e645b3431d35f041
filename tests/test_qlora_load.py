"""Tests of loading: equal to transformers' own, strict about weights, in one layer's memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.qlora.load import load_thinker, outline_thinker
from mmar_jobs.qlora.lora import attach_lora
from mmar_jobs.qlora.nf4 import Nf4Linear, Nf4Weight
from mmar_jobs.qlora.packing import pack_row
from mmar_jobs.qlora.recipes import TrainRecipe
from mmar_jobs.qlora.step import row_loss
from mmar_jobs.qlora.trainer import train
from mmar_jobs.weights import WEIGHTS_FILE
from tests import qlora_cases as cases

CPU = torch.device("cpu")
INDEX = "model.safetensors.index.json"
GATE = "thinker.model.layers.1.mlp.experts.3.gate_proj.weight"
Weights = dict[str, Tensor]


def from_pretrained(folder: Path, dtype: torch.dtype) -> Any:
    """The thinker as transformers loads it."""
    disable_progress_bar()
    return Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def logits_of(model: Any) -> Tensor:
    """(1, S, V) of a fixed text."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.arange(3, 40)[None]).logits
    return logits


def heard(model: Any) -> Tensor:
    """(A, H) of a fixed clip of 2.3 s, through the audio tower."""
    features = torch.randn(128, 230, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        embeds: Tensor = model.audio_tower(
            features, feature_lens=torch.tensor([230])
        ).last_hidden_state
    return embeds


def respoilt(folder: Path, change: Callable[[Weights], None]) -> Path:
    """A copy of the tiny model with other weights."""
    shutil.copytree(cases.base_folder(), folder)
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def sharded(folder: Path, num_shards: int, *, index: bool = True) -> Path:
    """A copy whose tensors are dealt to shards in turn, so that every layer is in all of them."""
    shutil.copytree(cases.base_folder(), folder)
    weights = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    names = [f"model-{k + 1:05}-of-{num_shards:05}.safetensors" for k in range(num_shards)]
    weight_map = {tensor: names[i % num_shards] for i, tensor in enumerate(weights)}
    for name in names:
        held = {tensor: weights[tensor] for tensor in weights if weight_map[tensor] == name}
        save_file(held, folder / name, metadata={"format": "pt"})
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_from_pretrained(dtype: torch.dtype) -> None:
    """Every weight, computed buffer, logit and audio embedding, bit for bit; frozen, no vision."""
    theirs = from_pretrained(cases.base_folder(), dtype)
    ours = load_thinker(cases.base_folder(), dtype=dtype, device=CPU)
    for kind in ("named_parameters", "named_buffers"):
        expected = {n: t for n, t in getattr(theirs, kind)() if not n.startswith("visual.")}
        found = dict(getattr(ours, kind)())
        assert expected.keys() == found.keys()
        for name, tensor in found.items():
            assert expected[name].dtype == tensor.dtype
            assert torch.equal(expected[name], tensor), name
    assert torch.equal(logits_of(theirs), logits_of(ours))
    assert torch.equal(heard(theirs), heard(ours))
    configs = [model.config.to_dict() | {"_name_or_path": ""} for model in (theirs, ours)]
    assert configs[0] == configs[1]
    assert not ours.training
    assert not [name for name, p in ours.named_parameters() if p.requires_grad]
    assert not hasattr(ours, "visual")


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_shards_load_like_one_file(tmp_path: Path, index: bool, quantization: Any) -> None:
    """Layers that span three files, with and without an index, give the same model."""
    folder = sharded(tmp_path / "m", 3, index=index)
    one, many = (
        load_thinker(f, dtype=torch.float32, device=CPU, quantization=quantization)
        for f in (cases.base_folder(), folder)
    )
    assert torch.equal(logits_of(one), logits_of(many))


def test_files_beyond_the_index_are_ignored(tmp_path: Path) -> None:
    """A consolidated copy beside the shards, as some hubs have it, is not read."""
    folder = sharded(tmp_path / "m", 2)
    shutil.copy(cases.base_folder() / WEIGHTS_FILE, folder / "consolidated.safetensors")
    model = load_thinker(folder, dtype=torch.float32, device=CPU)
    assert torch.equal(logits_of(cases.thinker()), logits_of(model))
    (folder / INDEX).unlink()
    with pytest.raises(GateError, match=r"is in consolidated\.safetensors and in model-0000"):
        load_thinker(folder, dtype=torch.float32, device=CPU)


def test_names_without_the_prefix_load_too(tmp_path: Path) -> None:
    """As transformers' own save_pretrained of a thinker names them; both at once is refused."""

    def strip(weights: Weights) -> None:
        for name in list(weights):
            weights[name.removeprefix("thinker.")] = weights.pop(name)

    folder = respoilt(tmp_path / "m", strip)
    model = load_thinker(folder, dtype=torch.float32, device=CPU)
    assert torch.equal(logits_of(cases.thinker()), logits_of(model))

    def double(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["thinker.lm_head.weight"].clone()

    with pytest.raises(GateError, match=r"lm_head\.weight is there with and without thinker\."):
        load_thinker(respoilt(tmp_path / "d", double), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_the_plain_model_quantised(dtype: torch.dtype) -> None:
    """Experts and attention are bitsandbytes' NF4 of the plain weights; the rest is untouched."""
    plain = load_thinker(cases.base_folder(), dtype=dtype, device=CPU)
    model = load_thinker(cases.base_folder(), dtype=dtype, device=CPU, quantization="nf4")
    quantised = {n: m for n, m in model.named_modules() if isinstance(m, Nf4Weight)}
    assert len(quantised) == 2 * (2 + 4)
    for name, weight in plain.named_parameters():
        if name in quantised:
            expected = Nf4Weight.quantize(weight).dequantize()
            assert torch.equal(expected, quantised[name].dequantize())
        else:
            assert torch.equal(weight, model.get_parameter(name)), name
    assert isinstance(model.model.layers[0].self_attn.q_proj, Nf4Linear)


def test_nf4_model_computes_as_the_decoded_one() -> None:
    """Logits and every factor's gradient are those of a plain model with the decoded weights."""
    model = load_thinker(cases.base_folder(), dtype=torch.float32, device=CPU, quantization="nf4")
    plain = cases.thinker()
    before = logits_of(plain)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Nf4Weight):
                plain.get_parameter(name).copy_(module.dequantize())
    expected = logits_of(plain)
    assert (logits_of(model) - expected).abs().max() < 1e-5
    assert 1e-3 < (expected - before).abs().max() < 0.5
    rows, audio = cases.make_rows([(12, 6), (10, 4)])
    grads = []
    for one in (model, plain):
        lora = attach_lora(one, cases.RECIPE, seed=0)
        cases.fill_factors(lora, seed=1)
        loss, _ = row_loss(lora, rows, pack_row(rows, [0, 1]), audio=audio, coefficients=[0.1, 0.1])
        grads.append(torch.autograd.grad(loss, list(lora.factors().values())))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_nf4_model_is_trained() -> None:
    """LoRA on the tiny NF4 model learns on the CPU, and the codes stay what they were."""
    model = load_thinker(cases.base_folder(), dtype=torch.float32, device=CPU, quantization="nf4")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rows, audio = cases.make_rows([(12, 6), (10, 4), (14, 5), (11, 3)] * 2)
    recipe = TrainRecipe(learning_rate=2e-2, examples_per_step=4, token_budget=96, num_epochs=8)
    result = train(attach_lora(model, cases.RECIPE, seed=0), rows, recipe, audio=audio)
    assert result.last_loss < result.first_loss - 0.3
    for name, buffer in model.named_buffers():
        assert torch.equal(before[name.replace(".base.", ".")], buffer), name


def drop(weights: Weights) -> None:
    """An expert's gate is missing."""
    del weights[GATE]


def swap(weights: Weights) -> None:
    """An expert's gate has rows and columns exchanged."""
    weights[GATE] = weights[GATE].T.contiguous()


def add(weights: Weights) -> None:
    """A ninth expert."""
    weights[GATE.replace("experts.3", "experts.8")] = weights[GATE].clone()


def narrow(weights: Weights) -> None:
    """A norm of another width."""
    weights["thinker.model.norm.weight"] = weights["thinker.model.norm.weight"][:-1].clone()


def deafen(weights: Weights) -> None:
    """The audio tower lacks a convolution."""
    del weights["thinker.audio_tower.conv2d2.weight"]


def eight_bit(weights: Weights) -> None:
    """A checkpoint that somebody quantised."""
    weights[GATE] = weights[GATE].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop, r"1 weights are missing, first model\.layers\.1\.mlp\.experts\.3\.gate_proj\.w"),
        (swap, r"1 weights are of another shape than config\.json says, first .*3\.gate_proj"),
        (add, r"1 weights are not part of the model, first .*experts\.8\.gate_proj"),
        (narrow, r"1 weights are of another shape .* first model\.norm\.weight"),
        (deafen, r"1 weights are missing, first audio_tower\.conv2d2\.weight"),
        (eight_bit, r"1 weights are not stored as 16 or 32-bit .* first .*3\.gate_proj"),
    ],
)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_wrong_weights_are_named(
    tmp_path: Path, spoil: Callable[[Weights], None], words: str, quantization: Any
) -> None:
    """Missing, mis-shaped, unknown and quantised weights, before any is read."""
    folder = respoilt(tmp_path / "m", spoil)
    with pytest.raises(GateError, match=words):
        outline_thinker(folder, dtype=torch.float32, quantization=quantization)
    with pytest.raises(GateError, match=words):
        load_thinker(folder, dtype=torch.float32, device=CPU, quantization=quantization)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    """One bad number in one expert, which NF4 would hide in its block."""

    def spoil(weights: Weights) -> None:
        weights[GATE][2, 5] = value

    folder = respoilt(tmp_path / "m", spoil)
    with pytest.raises(GateError, match=r"layers\.1\.mlp\.experts\.gate_up_proj .* not finite"):
        load_thinker(folder, dtype=torch.float32, device=CPU, quantization="nf4")


def test_weights_for_parts_that_are_left_out_are_not_missed(tmp_path: Path) -> None:
    """A folder without vision tower loads; one with talker and code2wav does too, and tells."""

    def spoil(weights: Weights) -> None:
        for name in list(weights):
            if ".visual." in name:
                del weights[name]
        weights["talker.model.norm.weight"] = torch.ones(100)
        weights["code2wav.x"] = torch.ones(10)

    folder = respoilt(tmp_path / "m", spoil)
    outline = outline_thinker(folder, dtype=torch.float32, quantization="none")
    assert {"talker": 400, "code2wav": 40} == outline.left_out_bytes
    model = load_thinker(folder, dtype=torch.float32, device=CPU)
    assert torch.equal(logits_of(cases.thinker()), logits_of(model))


def test_missing_shards_and_broken_indexes_are_named(tmp_path: Path) -> None:
    """A shard that was not copied, an index that is no index."""
    folder = sharded(tmp_path / "m", 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards in .* missing, first model-00002-of"):
        load_thinker(folder, dtype=torch.float32, device=CPU)
    for text in ("", "[]", '{"weight_map": 3}', "{}"):
        (folder / INDEX).write_text(text)
        with pytest.raises(DataError, match="no readable index of shards"):
            load_thinker(folder, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "hidden_size", "wide"),
        ("text_config", "num_hidden_layers", None),
        ("text_config", "hidden_act", "sigmund"),
        ("audio_config", "d_model", -4),
        ("audio_config", "encoder_attention_heads", 0),
        ("text_config", "vocab_size", 10**30),
    ],
)
def test_configs_that_build_nothing_are_one_line(
    tmp_path: Path, part: str, key: str, value: Any
) -> None:
    """Sizes that are no sizes."""
    folder = shutil.copytree(cases.base_folder(), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["thinker_config"][part][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError) as caught:
        load_thinker(folder, dtype=torch.float32, device=CPU)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_experts_are_read_layer_by_layer(tmp_path: Path) -> None:
    """However shards are cut, one layer's experts are read before the next one's begin."""
    outline = outline_thinker(sharded(tmp_path / "m", 4), dtype=torch.float32, quantization="nf4")
    layers = [w.note.weight.split(".")[2] for w in outline.wanted if "experts" in w.note.weight]
    assert len(layers) == 2 * 8 * 3
    assert sum(a != b for a, b in pairwise(layers)) == 1


_MEASURE = """
import sys
from pathlib import Path
import torch
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.bench.spent import peak_bytes
torch.set_num_threads(1)
def load(folder):
    cpu = torch.device("cpu")
    return load_thinker(Path(folder), dtype=torch.bfloat16, device=cpu, quantization="nf4")
load(sys.argv[1])  # imports and their buffers
before = peak_bytes()
model = load(sys.argv[2])
print(peak_bytes() - before)
"""


def large_model(folder: Path) -> Path:
    """A copy of the tiny model with 96 layers of 64 experts, 1.5 GB in bf16."""
    num_layers, num_experts, width = 96, 64, 320
    shutil.copytree(cases.base_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["thinker_config"]["text_config"] |= {
        "num_hidden_layers": num_layers,
        "num_experts": num_experts,
        "moe_intermediate_size": width,
    }
    (folder / "config.json").write_text(json.dumps(config))
    small = load_file(folder / WEIGHTS_FILE)
    weights = {n: t.bfloat16() for n, t in small.items() if ".model.layers." not in n}
    layer = {n: t.bfloat16() for n, t in small.items() if ".model.layers.0." in n}
    for index in range(num_layers):
        path = f".model.layers.{index}."
        for name, tensor in layer.items():
            if ".mlp." not in name:
                weights[name.replace(".model.layers.0.", path)] = tensor.clone()
        weights[f"thinker{path}mlp.gate.weight"] = torch.zeros(num_experts, 128).bfloat16()
        for expert in range(num_experts):
            for part in ("gate", "up", "down"):
                shape = (128, width) if part == "down" else (width, 128)
                name = f"thinker{path}mlp.experts.{expert}.{part}_proj.weight"
                weights[name] = torch.full(shape, 0.01).bfloat16()
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_memory_is_that_of_the_quantised_model(tmp_path: Path) -> None:
    """Of a 1.5 GB checkpoint the process never holds more than its NF4 form and one layer."""
    folder = large_model(tmp_path / "large")
    size = (folder / WEIGHTS_FILE).stat().st_size
    assert size > 1.4e9
    command = [sys.executable, "-c", _MEASURE, str(cases.base_folder()), str(folder)]
    root = Path(__file__).parents[1]
    # Left to itself glibc moves its threshold up, keeps freed tensors in its heap, and one run in
    # six needs 1 GB more, all of it holes.
    steady = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=steady)
    # NF4 is 0.26 of bf16; a layer's experts (16 MB) and what bitsandbytes' CPU code makes of them
    # (20 bytes a number of the larger projection, 105 MB) come on top.
    assert 0.2 * size < int(said.stdout) < 0.45 * size
