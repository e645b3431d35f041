"""The command `audit`: what of a model is quantised, wrapped, frozen and trained, and how large.

Not here: taking stock (audit.py). No weight is read: config.json and the headers of the weight
files say it all, so a laptop audits a model of 61 GB in seconds.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmar_jobs.arguments import Parser
from mmar_jobs.errors import ExitCode

if TYPE_CHECKING:
    from mmar_jobs.qlora.audit import AuditRow

_UNITS: Final = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def audit(arguments: Sequence[str]) -> int:
    """Print the table of one model folder as training would hold it."""
    parser = Parser(
        "mmar-jobs audit",
        description="What of a model is quantised, wrapped, frozen and trained, from its headers.",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="model folder (original layout)")
    parser.add_argument(
        "--quantization",
        choices=("nf4", "none"),
        default="nf4",
        help="how experts and attention are stored on the device; the rest is bf16 (default: nf4)",
    )
    parser.add_argument("--rank", type=int, default=64, help="rank of LoRA (default: 64)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (default: a table)"
    )
    chosen = parser.parse_args(arguments)
    facts = _facts(chosen.model, chosen.quantization, chosen.rank)
    text = json.dumps(facts, indent=1) if chosen.json else "\n".join(_table(facts))
    sys.stdout.write(f"{text}\n")
    return ExitCode.DONE


def _facts(folder: Path, quantization: Any, rank: int) -> dict[str, Any]:
    """Attach LoRA to the model's outline and take stock; GateError where training would refuse."""
    import torch  # noqa: PLC0415 - heavy, and --help must be fast

    from mmar_jobs.qlora.audit import audit as take_stock  # noqa: PLC0415 - the same
    from mmar_jobs.qlora.audit import check_audit  # noqa: PLC0415 - the same
    from mmar_jobs.qlora.load import outline_thinker  # noqa: PLC0415 - the same
    from mmar_jobs.qlora.lora import attach_lora  # noqa: PLC0415 - the same
    from mmar_jobs.qlora.recipes import LoraRecipe  # noqa: PLC0415 - the same

    recipe = LoraRecipe(rank=rank)
    outline = outline_thinker(folder, dtype=torch.bfloat16, quantization=quantization)
    with torch.device("meta"):
        lora = attach_lora(outline.model, recipe, seed=0)
    found = take_stock(lora.model)
    check_audit(found, quantization)
    return {
        "model": str(folder),
        "quantization": quantization,
        "rank": rank,
        "num_layers": found.num_layers,
        "num_experts": outline.model.num_experts,
        "num_stored_tensors": len(outline.wanted),
        "num_trained": found.num_trained,
        "num_bytes": found.num_bytes,
        "rows": [_row(row) for row in found.rows],
        "left_on_disk_bytes": dict(outline.left_out_bytes),
    }


def _row(row: "AuditRow") -> dict[str, Any]:
    return asdict(row) | {"dtypes": sorted(row.dtypes)}


def _table(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{facts['model']}: {facts['num_layers']} layers of {facts['num_experts']} experts, "
        f"{facts['num_stored_tensors']:,} stored tensors, LoRA of rank {facts['rank']}",
        "",
        f"{'':<18}{'tensors':>8}{'numbers':>10}{'bytes':>10}  {'stored as':<18}{'LoRA on':>8}  "
        "state",
    ]
    lines += [
        f"{row['kind']:<18}{row['num_tensors']:>8,}{_short(row['num_parameters']):>10}"
        f"{_short(row['num_bytes']) + 'B':>10}  {', '.join(row['dtypes']):<18}"
        f"{row['num_wrapped'] or '-':>8}  {_state(row)}"
        for row in facts["rows"]
    ]
    lines += [
        f"{part:<18}{'':>18}{_short(size) + 'B':>10}  left on disk"
        for part, size in facts["left_on_disk_bytes"].items()
    ]
    return [
        *lines,
        "",
        f"trained: {_short(facts['num_trained'])} numbers; all weights on the device: "
        f"{_short(facts['num_bytes'])}B, before gradients, optimizer and activations",
    ]


def _state(row: dict[str, Any]) -> str:
    if row["num_trained"]:
        return "trained"
    return "quantised, frozen" if row["num_quantised"] else "frozen"


def _short(count: int) -> str:
    size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (1, ""))
    return f"{count / size:.2f} {unit}" if unit else f"{count} "
