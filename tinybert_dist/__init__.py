"""Distillation of BERT-like encoders into small ones (TinyBERT, arXiv 1909.10351), on accelerate."""

__version__ = "0.1.0"
