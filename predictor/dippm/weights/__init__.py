"""Trained weights, as package data."""
