"""All metadata is in setup.cfg; this shim serves tools that still ask for a setup.py."""

from setuptools import setup

if __name__ == "__main__":
    setup()
