"""Module paths of version 0.1 that have moved: importing an old path gives the new module, with a warning.

Notebooks that were executed by 0.1, and scripts written for it, name modules that the rooms of today no longer have.
The finder stands first in `sys.meta_path`: a moved package has the new one's search path, on which the usual finder
would load its modules a second time, under the old name.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from typing import Any

MOVED = {
    "crosscal.calibration.gradients": "crosscal.calibration.statistics",
    "crosscal.driver": "crosscal.engine.driver",
    "crosscal.export": "crosscal.output.export",
    "crosscal.gather": "crosscal.engine.gather",
    "crosscal.memory": "crosscal.engine.reports",
    "crosscal.methods.joint_rank": "crosscal.methods.lowrank",
    "crosscal.metrics.answers": "crosscal.metrics.writing",
    "crosscal.metrics.likelihood": "crosscal.metrics.text_scores",
    "crosscal.packing": "crosscal.output.packing",
    "crosscal.report": "crosscal_book",
    "crosscal.report.compare": "crosscal.results.compare",
    "crosscal.report.freshness": "crosscal_book.pages.freshness",
    "crosscal.report.notebooks": "crosscal_book.pages.notebooks",
    "crosscal.report.pages": "crosscal_book.pages.generated",
    "crosscal.report.rows": "crosscal.results.frame",
    "crosscal.report.studies": "crosscal_book.chapters",
    "crosscal_book.chapters.report_card_show": "crosscal_book.earlier",
    "crosscal.reports": "crosscal.engine.reports",
    "crosscal.storage": "crosscal.types",
    "crosscal.streaming": "crosscal.disk",
    "crosscal.streaming.journal": "crosscal.disk.journal",
    "crosscal.study.chapters": "crosscal.plan.chapters",
    "crosscal.study.parameters": "crosscal.plan.parameters",
    "crosscal.study.presets": "crosscal.plan.parameters",
    "crosscal.study.store": "crosscal.results.store",
    "crosscal.targets": "crosscal.types",
    "crosscal.text.sampling": "crosscal.text.written",
}


def _new_name(old: str) -> str | None:
    """The name a module has today; None for one that never moved."""
    parent, _, child = old.rpartition(".")
    return MOVED.get(old) or (f"{MOVED[parent]}.{child}" if parent in MOVED else None)


class _Moved(MetaPathFinder, Loader):
    """Finds an old name and loads the module that took its place."""

    def __init__(self):
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        new = _new_name(fullname)
        real = find_spec(new) if new else None
        return real and ModuleSpec(fullname, self, is_package=real.submodule_search_locations is not None)

    def create_module(self, spec: ModuleSpec):
        new = _new_name(spec.name) or spec.name
        warnings.warn(f"{spec.name} has moved to {new}; import it from there", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        old = module.__spec__  # the import system has put the old name's there
        module.__spec__ = self._specs[old.name]

    def get_code(self, fullname: str):
        """The code of the new module, for `python -m`."""
        spec = find_spec(_new_name(fullname) or fullname)
        return spec.loader.get_code(spec.name) if spec and isinstance(spec.loader, SourceFileLoader) else None


def install() -> None:
    """Let old module paths be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
