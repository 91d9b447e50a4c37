"""DELIFT: choose the part of an instruction dataset worth fine-tuning on."""

__version__ = "0.1.0"
