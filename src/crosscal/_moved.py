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

_BY_PLACE = {
    "crosscal.calibration.statistics": "calibration.gradients",
    "crosscal.disk": "streaming",
    "crosscal.disk.journal": "streaming.journal",
    "crosscal.engine.driver": "driver",
    "crosscal.engine.gather": "gather",
    "crosscal.engine.reports": "memory reports",
    "crosscal.methods.lowrank": "methods.joint_rank",
    "crosscal.methods.masks": "methods.kernels.select",
    "crosscal.methods.rtn": "methods.grids",
    "crosscal.metrics.tasks.adapter": "metrics.tasks.generation",
    "crosscal.metrics.tasks.catalogue": "metrics.tasks.catalogue_skills metrics.tasks.registry metrics.tasks.task",
    "crosscal.metrics.tasks.evaluate": "metrics.tasks.domains metrics.tasks.result metrics.tasks.scoring",
    "crosscal.metrics.tasks.files": "metrics.tasks.build",
    "crosscal.metrics.tasks.held_out": "metrics.tasks.biomedical metrics.tasks.language metrics.tasks.legal "
    "metrics.tasks.sentences",
    "crosscal.metrics.tasks.items": "metrics.tasks.general metrics.tasks.recipes metrics.tasks.rows "
    "metrics.tasks.skills metrics.tasks.variants",
    "crosscal.metrics.text_scores": "metrics.likelihood",
    "crosscal.metrics.writing": "metrics.answers metrics.prompts",
    "crosscal.models.loading": "models.devices models.finding",
    "crosscal.output.export": "export",
    "crosscal.output.packing": "packing",
    "crosscal.plan.chapters": "study.chapters study.maker",
    "crosscal.plan.parameters": "study.parameters study.presets",
    "crosscal.results.compare": "report.compare",
    "crosscal.results.frame": "report.rows",
    "crosscal.results.provenance": "study.provenance",
    "crosscal.results.store": "study.store",
    "crosscal.stats": "study.statistics",
    "crosscal.text.documents": "text.registry",
    "crosscal.text.written": "text.sampling",
    "crosscal.types": "storage",
    "crosscal_book": "report",
    "crosscal_book.chapters": "report.studies",
    "crosscal_book.pages.freshness": "report.freshness",
    "crosscal_book.pages.generated": "report.pages",
    "crosscal_book.pages.notebooks": "report.notebooks",
}
MOVED = {f"crosscal.{old}": new for new, olds in _BY_PLACE.items() for old in olds.split()}
MOVED["crosscal_book.chapters.report_card_show"] = "crosscal_book.earlier"


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
