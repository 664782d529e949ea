"""The zoo: which models are measured, declared once and reproducible from a seed.

`declare` draws the list of cases, `build` makes one of them into a module and its inputs.
"""

from dippm.zoo.case import InputShape, ZooCase, read_cases, write_cases

__all__ = ["InputShape", "ZooCase", "read_cases", "write_cases"]
