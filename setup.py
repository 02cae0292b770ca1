"""Packaging: the folders of the checkout become one package, `modeling_salmonn`."""

from setuptools import setup


SUBPACKAGES = ("processing", "hub", "training", "evaluation", "smol")

setup(
    packages=["modeling_salmonn", *(f"modeling_salmonn.{name}" for name in SUBPACKAGES)],
    package_dir={f"modeling_salmonn.{name}": name for name in SUBPACKAGES},
    package_data={f"modeling_salmonn.{name}": ["**/*.json", "**/*.yaml", "salmonn-smol/**"] for name in SUBPACKAGES},
)
