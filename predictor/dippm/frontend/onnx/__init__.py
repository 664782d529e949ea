"""ONNX files to a program of ATen calls: `model` is the way through, `file` reads and validates, `fold` makes shapes
static, `rebatch` gives a fixed batch another value (with `batched_values`, `batched_rows`, `stored_rows` and
`spelled_out`), `fuse` and `attention` put together, `restore` puts back, `program` writes the calls down.

Here `dippm.frontend.onnx`; the library of the same name is imported absolutely, as everywhere.
"""
