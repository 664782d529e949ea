"""The one package that imports TVM: operators expressed in Relax.

TVM 0.27 (Apache TVM, `tvm.relax.frontend`). Parameters enter as typed inputs, so no weight is read or copied.
"""
