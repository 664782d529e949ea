"""The measuring harness: labels of `DESIGN.md`'s table, read from a real GPU with PyTorch's allocator and NVML.

Runs on any machine with an NVIDIA GPU, PyTorch, timm, transformers and nvidia-ml-py; needs neither TVM nor pydantic.
"""
