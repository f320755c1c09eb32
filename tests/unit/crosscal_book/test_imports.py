import pkgutil
import subprocess
import sys

import crosscal_book

MODULES = sorted(module.name for module in pkgutil.walk_packages(crosscal_book.__path__, "crosscal_book."))


def test_the_report_never_imports_torch():
    block = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None"
    code = f"{block}; import importlib; [importlib.import_module(name) for name in {MODULES}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
