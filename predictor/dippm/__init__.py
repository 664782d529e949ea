"""DIPPM: what a deep-learning model needs, without running it (Panner Selvam and Brorsson, Euro-Par 2023)."""
