"""How pytest treats the course: notebooks compared with tolerance, no test skipped unseen."""

import os
import sys
from pathlib import Path
from unittest import mock

import nbval.plugin
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell

sys.path.insert(0, str(Path(__file__).parent / "tools"))
os.environ.setdefault("MPLBACKEND", "agg")

from compare_outputs import reconcile
from kernel_environment import kernel_environment


class CourseKernel(RunningKernel):
    """A kernel in the environment of `tools/notebooks.py run`, which keeps history as it does."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        with mock.patch.dict(os.environ, kernel_environment(), clear=True):
            super().__init__(*args, **kwargs)

    def execute_cell_input(self, cell_input: str, allow_stdin: bool | None = None) -> str:
        """Run a cell with history, without which a trailing semicolon silences nothing."""
        return self.kc.execute(cell_input, allow_stdin=allow_stdin, stop_on_error=False)


nbval_init, nbval_compare = IPyNbCell.__init__, IPyNbCell.compare_outputs


def named_init(
    item: IPyNbCell, name: str, parent: pytest.File, cell_num: int, cell: dict, options: dict
) -> None:
    """Name a notebook's cells by their ids too."""
    nbval_init(item, f"{name} [{cell.get('id', 'no id')}]", parent, cell_num, cell, options)


def compare_with_tolerance(item: IPyNbCell, fresh: list, stored: list, *args: object) -> bool:
    """Let nbval compare exactly what is left after the differences that are allowed."""
    reconcile(fresh, stored)
    return nbval_compare(item, fresh, stored, *args)


nbval.plugin.RunningKernel = CourseKernel
IPyNbCell.__init__, IPyNbCell.compare_outputs = named_init, compare_with_tolerance


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Refuse cells that were never run: nbval would compare nothing."""
    if isinstance(item, IPyNbCell) and item.cell.execution_count is None:
        pytest.fail("This cell was never run: python tools/notebooks.py run", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """Turn an unexpected skip of a test into a failure where COURSE_NO_SKIPS=1."""
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> object:
    """Turn an unexpected skip of a whole file into a failure where COURSE_NO_SKIPS=1."""
    return refuse_skip((yield))


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> object:
    """Fail a report of a skip whose reason does not start with `expected:`."""
    strict = os.environ.get("COURSE_NO_SKIPS") == "1"
    if strict and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith("expected:"):
            report.outcome, report.longrepr = "failed", f"COURSE_NO_SKIPS=1, but skipped: {reason}"
    return report
