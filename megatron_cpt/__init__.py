"""Continual pretraining on Megatron-Core. Importing it changes nothing: api.py names what scripts use."""

__version__ = "0.2.0"
