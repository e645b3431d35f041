"""A bench's Job: its name, labels and arguments; pure.

Not here: the manifest (k8s/benchmark), making it (jobs.py), measuring (bench/).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmar_jobs.bench.cells import Cell
from mmar_jobs.cluster.jobs import RUN_LABEL, STAGE_LABEL


@dataclass(frozen=True)
class BenchWork:
    """One bench of one commit; `node` is cpu or gpu."""

    cell: Cell
    run_id: str
    commit: str
    node: str

    @property
    def name(self) -> str:
        """See Work."""
        return f"{self.run_id}-{self.cell.digest}"

    @property
    def labels(self) -> dict[str, str]:
        """See Work."""
        return {RUN_LABEL: self.run_id, STAGE_LABEL: f"bench-{self.node}"}

    def arguments(self, flags: Sequence[str]) -> list[str]:
        """See Work."""
        return ["bench", "record", str(self.cell), "--commit", self.commit, *flags]
