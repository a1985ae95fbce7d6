"""Imports from before the folders: see `ccd.moved`"""
from ccd.moved import _looking
__getattr__ = _looking(__name__)
