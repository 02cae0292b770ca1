"""Packaging: the folders of the checkout become one package, `modeling_salmonn`."""

from setuptools import setup


SUBPACKAGES = ("processing", "hub")

setup(
    packages=["modeling_salmonn", *(f"modeling_salmonn.{name}" for name in SUBPACKAGES)],
    package_dir={f"modeling_salmonn.{name}": name for name in SUBPACKAGES},
    package_data={"modeling_salmonn.processing": ["*.json"]},
)
