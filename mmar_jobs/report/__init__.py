"""One self-contained HTML page about a run: did the model get better, and how.

Not here: making anything that a later stage reads; the page is a view and may be written again.
"""

from mmar_jobs.layout import report_key
from mmar_jobs.report.cases import show_cases
from mmar_jobs.report.findings import compare
from mmar_jobs.report.page import render_page
from mmar_jobs.report.plan_view import compare_with_plan
from mmar_jobs.report.run_view import read_run
from mmar_jobs.store import Store

__all__ = ["write_report"]


def write_report(store: Store, run_id: str, *, endpoint_url: str | None = None) -> bytes:
    """Write report.html of a run into its store, finished or not, and return its bytes.

    `endpoint_url` names the S3 server of the clips. DataError for a run without any artifact,
    GateError for a damaged one; a clip that cannot be read is said on the page. The same artifacts
    and clips give the same bytes.
    """
    run = read_run(store, run_id)
    comparison = compare(run)
    cases = show_cases(run, comparison, endpoint_url=endpoint_url) if comparison else []
    planned = compare_with_plan(store, run)
    html = render_page(run, comparison, cases, planned=planned).encode()
    store.write(report_key(run_id), html)
    return html
