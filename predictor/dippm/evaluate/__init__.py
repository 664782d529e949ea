"""Evaluation: how far predictions are from measurements, on architectures held back."""
