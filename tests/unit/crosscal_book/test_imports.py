import pkgutil
import subprocess
import sys

import crosscal_book

MODULES = sorted(module.name for module in pkgutil.walk_packages(crosscal_book.__path__, "crosscal_book."))
CODE = f"""
import importlib, sys
for name in {MODULES}:
    importlib.import_module(name)
sys.exit(bool({{"torch", "transformers", "lm_eval"}} & set(sys.modules)))
"""


def test_the_book_never_imports_torch():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
