"""The step of the build that pyproject.toml has no words for: a wheel carries the recipes and constraints.txt inside the package.

The source tree and an editable installation read both at the top level (src/tinyzero_trl/installation.py).
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies what is at the top level of the source tree into the package that is built."""

    def run(self) -> None:
        package = Path(self.build_lib) / "tinyzero_trl"
        # An earlier build leaves modules and recipes here that the source tree may have lost since.
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            shutil.copytree("recipes", package / "recipes")
            shutil.copy("constraints.txt", package)


setup(cmdclass={"build_py": BuildWithRecipes})
