"""Packaging of meg_editor; the settings of its tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"]


def version() -> str:
    """`__version__`, read as text: importing the package would need what it installs."""
    source = (HERE / "meg_editor" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError("meg_editor/__init__.py has no __version__")
    return found[1]


def readme() -> str:
    """The long description; empty in a tree without a README."""
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


setup(
    name="meg-editor",
    version=version(),
    description="Edit thousands of facts in a language model with one generated neuron (MeG)",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["meg_editor", "meg_editor.*"]),
    include_package_data=False,  # package_data alone decides, not MANIFEST.in
    package_data={
        "meg_editor": ["py.typed"],
        "meg_editor.config": ["presets/*.yaml"],
        "meg_editor.lm": ["assets/**/*"],
        "meg_editor.data.phrasebook": ["*.yaml"],
        "meg_editor.data.world": ["*.tsv", "*.yaml"],
        "meg_editor.reports": ["*.css", "*.html", "*.md"],
        "meg_editor.routing": ["verifiers/*.safetensors"],
        "meg_editor.serving": ["page/*"],
    },
    # Lower bounds only; what is tested is in constraints.txt.
    install_requires=[
        "accelerate>=1.1",  # transformers wants it for device_map (model_parallel)
        "diffusers>=0.35",
        "numpy>=1.26",
        "psutil>=5.9",
        "pyyaml>=6.0",
        "safetensors>=0.4.5",
        "tokenizers>=0.21",
        "torch>=2.5",
        "tqdm>=4.66",
        "transformers>=5",
    ],
    # There is no extra for EasyEdit: the wheel, easyeditor 0.0.1.dev0, pins packages of 2023.
    extras_require={
        "docs": DOCS,
        "lm-eval": ["lm_eval>=0.4.9"],
        "plots": ["matplotlib>=3.8"],
        "serve": ["fastapi>=0.115", "prometheus-client>=0.20", "uvicorn>=0.30"],
        # setuptools: a test builds the package, and Python 3.12 has none of its own.
        "test": [
            *DOCS,
            "fastapi>=0.115",
            "httpx>=0.27",
            "ipykernel>=6.29",  # the notebooks run in the tests
            "lm_eval>=0.4.9",
            "matplotlib>=3.8",
            "mypy",
            "nbclient>=0.10",
            "openai>=2",
            "playwright>=1.50",
            "prometheus-client>=0.20",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff",
            "scikit-learn>=1.5",  # trains the support vectors that are shipped
            "setuptools>=64",
            "types-PyYAML",
            "types-tqdm",
            "uvicorn>=0.30",
        ],
    },
    entry_points={"console_scripts": ["meg-editor = meg_editor.cli.main:entry"]},
)
