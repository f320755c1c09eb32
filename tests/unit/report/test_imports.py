import pkgutil
import subprocess
import sys

import pytest

import crosscal.report

MODULES = sorted(module.name for module in pkgutil.iter_modules(crosscal.report.__path__))


@pytest.mark.parametrize("module", MODULES)
def test_the_report_never_imports_torch(module):
    block = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None"
    code = f"{block}; import importlib; importlib.import_module('crosscal.report.{module}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
