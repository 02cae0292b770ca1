"""Packaging: two folders of the checkout lie beside the package and become parts of it."""

from setuptools import setup


INSIDE = ("data", "training", "evaluation", "serving", "activation", "studies", "commands")
BESIDE = ("processing", "hub")

setup(
    packages=["modeling_salmonn", *(f"modeling_salmonn.{name}" for name in INSIDE + BESIDE)],
    package_dir={f"modeling_salmonn.{name}": name for name in BESIDE},
    package_data={f"modeling_salmonn.{name}": ["*.json", "*.yaml", "salmonn-smol/**"] for name in INSIDE + BESIDE},
)
