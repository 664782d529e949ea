"""Writes the TensorFlow operators that a SavedModel may have: predictor/dippm/frontend/tensorflow_operators.txt.

    /opt/tensorflow/bin/python bench/tensorflow_operators.py            # a Python that has dippm[tensorflow]

1. What tf2onnx converts, as far as TensorFlow has an operator of that name; less its input pipelines.
2. What exports of all of keras.applications hold beside, and layers that none of them has: with dropout and batch
   norms that learn, since exports keep a model's training calls, too.
3. What graphs of older versions and other authors hold: control flow, variables and numerics (`OTHERS`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}

import keras
import tensorflow as tf
import tf2onnx.tfonnx  # fills the registry of handlers
from keras import layers as kl
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.client import pywrap_tf_session
from tf2onnx.handler import tf_op

OPERATORS = Path(__file__).parents[1] / "predictor" / "dippm" / "frontend" / "tensorflow_operators.txt"
PIPELINES = ("Iterator", "FIFOQueue", "Queue")
OTHERS = """
    Switch Merge Enter Exit NextIteration LoopCond ControlTrigger RefSwitch RefEnter RefExit RefMerge
    RefNextIteration TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3 TensorArrayScatterV3
    TensorArraySizeV3 TensorArraySplitV3 TensorArrayConcatV3 TensorArrayCloseV3 Variable VariableV2 Assign
    RefIdentity IsVariableInitialized PartitionedCall StatefulPartitionedCall Case StatelessCase Assert Snapshot
    PreventGradient GuaranteeConst Bitcast VarHandleOp ReadVariableOp AssignVariableOp AssignAddVariableOp
    AssignSubVariableOp VarIsInitializedOp VariableShape ResourceGather ResourceGatherNd DestroyResourceOp
    LookupTableImportV2 LSTMBlockCell GRUBlockCell BlockLSTM BlockLSTMV2 CudnnRNNV2 CudnnRNNV3 EmptyTensorList
    TensorListPushBack TensorListPopBack TensorListElementShape TensorListConcatV2 TensorListSplit
    TensorListGather TensorListScatter TensorListScatterV2 TensorListFromTensor Rank ShapeN Empty LinSpace
    BroadcastArgs ConjugateTranspose UnravelIndex UpperBound LowerBound NthElement TopK Inv Mod TruncateMod
    ApproximateEqual Log1p Expm1 Erfc Erfinv Ndtri Lgamma Digamma Igamma Igammac Betainc Xlogy Xlog1py Xdivy
    MulNoNan NextAfter Complex Real Imag Conj Angle Cross Cholesky Qr Svd MatrixSolve MatrixTriangularSolve
    MatrixSetDiag MatrixSetDiagV2 IFFT IFFT2D FFT2D IRFFT IRFFT2D CumulativeLogsumexp EuclideanNorm Bucketize
    Conv Dilation2D FractionalAvgPool FractionalMaxPool BatchNormWithGlobalNormalization L2Loss InTopK InTopKV2
    AvgPool3D BatchToSpace SpaceToBatch ScaleAndTranslate ImageProjectiveTransformV2 ImageProjectiveTransformV3
    RGBToHSV HSVToRGB AdjustContrast ResizeNearestNeighbor ExtractVolumePatches TensorScatterAdd
    FakeQuantWithMinMaxVarsPerChannel QuantizeV2 Dequantize QuantizeAndDequantize QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 TruncatedNormal ParameterizedTruncatedNormal RandomGamma
    RandomPoissonV2 StatelessMultinomial StatelessRandomUniform StatelessRandomNormal StatelessTruncatedNormal
    StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformFullInt
    StatelessRandomUniformFullIntV2 StatelessTruncatedNormalV2 StatelessRandomGetAlg
    StatelessRandomGetKeyCounterAlg RngReadAndSkip RngSkip StatefulUniform StatefulStandardNormalV2
    SparseTensorDenseMatMul SparseConcat SparseSlice SparseReorder SparseFillEmptyRows SparseDenseCwiseAdd
""".split()  # noqa: SIM905  # a list of 170 names would be as many lines
"""The third part: numerics, control flow and state within the graph. None of them knows a file, a host or a device."""
HEAD = """\
# Operators that a TensorFlow graph may have (tensorflow_safety.py): all others are refused by name.
# Written by bench/tensorflow_operators.py: what tf2onnx {tf2onnx} converts, what exports of keras.applications
# (Keras {keras}, TensorFlow {tensorflow}) hold, and the numerics and control flow of others (OTHERS there).
"""


def converted() -> set[str]:
    """Operators with a handler in tf2onnx."""
    handled = {name for by_version in tf_op._OPSETS.values() for version in by_version for name in version}
    return {name for name in handled if not name.startswith(PIPELINES)}


def registered() -> dict[str, Any]:
    """TensorFlow's operators."""
    found = op_def_pb2.OpList()
    found.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return {one.name: one for one in found.op}


def _applications() -> Iterator[Any]:
    """One of each module of keras.applications: the models of one are of the same operators."""
    models = [one for name, one in vars(keras.applications).items() if name[0].isupper()]
    for module in sorted({one.__module__ for one in models}):
        yield next(one for one in models if one.__module__ == module)(weights=None)


def _layers() -> Iterator[Any]:
    """Layers that no application has."""
    image, sequence, ids = keras.Input((32, 32, 4)), keras.Input((16, 8)), keras.Input((16,), dtype="int32")
    volume = keras.Input((8, 8, 8, 2))
    x = kl.Normalization(mean=0.1, variance=2.0)(kl.Rescaling(0.1)(kl.Resizing(24, 24)(image)))
    for layer in (
        kl.Conv2DTranspose(4, 3, strides=2), kl.SeparableConv2D(4, 3, dilation_rate=2), kl.UpSampling2D(2),
        kl.UpSampling2D(2, interpolation="bilinear"), kl.Cropping2D(2), kl.LayerNormalization(), kl.UnitNormalization(),
        kl.GroupNormalization(2), kl.SpatialDropout2D(0.1), kl.GaussianNoise(0.1), kl.GaussianDropout(0.1), kl.PReLU(),
        kl.AlphaDropout(0.1), kl.LeakyReLU(), kl.ELU(), kl.Softmax(),
        kl.ReLU(max_value=4.0, negative_slope=0.1, threshold=0.5),
    ):  # fmt: skip
        x = layer(x)
    for name in ("relu", "gelu", "silu", "hard_sigmoid", "hard_silu", "mish", "selu", "softplus", "softsign", "tanh",
                 "exponential", "log_softmax", "relu6", "celu", "glu", "sigmoid", "elu"):  # fmt: skip
        x = kl.Activation(name)(x)
    yield keras.Model(image, kl.GlobalMaxPooling2D()(x))
    yield keras.Sequential(
        [volume, kl.Conv3D(2, 3), kl.MaxPooling3D(), kl.Conv3DTranspose(2, 2), kl.AveragePooling3D(2)]
    )
    for cell in (kl.LSTM, kl.GRU, kl.SimpleRNN):
        yield keras.Sequential([sequence, kl.Bidirectional(cell(4, return_sequences=True, dropout=0.1)), cell(4)])
        yield keras.Sequential([ids, kl.Embedding(9, 4, mask_zero=True), cell(4, reset_after=False)
                                if cell is kl.GRU else cell(4, unroll=True)])  # fmt: skip
    yield keras.Sequential([keras.Input((8, 8, 8, 3)), kl.ConvLSTM2D(2, 3)])
    yield keras.Sequential([sequence, kl.Conv1D(4, 3), kl.MaxPooling1D(), kl.Conv1DTranspose(4, 3), kl.UpSampling1D(),
                            kl.ZeroPadding1D(1), kl.SeparableConv1D(4, 2), kl.GlobalAveragePooling1D()])  # fmt: skip
    words = kl.Embedding(50, 8)(ids) + kl.Embedding(16, 8)(keras.ops.arange(16))
    y = kl.MultiHeadAttention(2, 4, dropout=0.1)(words, words, use_causal_mask=True)
    y = kl.GroupQueryAttention(4, 4, 2)(y, y)
    y = kl.Attention(dropout=0.1)([y, kl.AdditiveAttention()([y, y])])
    y = kl.Add()([y, kl.Average()([y, words]), kl.Multiply()([y, words]), kl.Maximum()([y, words])])
    y = kl.Concatenate()([kl.Dot(axes=2)([y, kl.Minimum()([y, words])]), kl.Subtract()([y, words])])
    yield keras.Model(ids, [kl.CategoryEncoding(50)(ids), kl.TimeDistributed(kl.Dense(2))(kl.RepeatVector(2)(y[:, 0]))])
    z = keras.ops
    e = kl.EinsumDense("abc,cd->abd", output_shape=(None, 16))(sequence)
    e = z.where(z.isnan(e), z.zeros_like(e), e) + z.cumsum(e, 1) + z.clip(e, -1, 1) + z.flip(e, 1) + z.roll(e, 1, 1)
    e = z.pad(e, ((0, 0), (1, 1), (0, 0)), mode="reflect") + z.pad(e, ((0, 0), (1, 1), (0, 0)))
    e = z.take(e, z.argsort(z.sum(e, (0, 2))), 1) + z.rsqrt(z.abs(e) + 1) + z.logsumexp(e, -1, keepdims=True)
    e = z.expand_dims(z.top_k(e, 3)[0], 1) * z.one_hot(z.argmax(e, -1), 3)[:, None] + z.sin(e[:, None, :, :3])
    yield keras.Model(
        sequence, [e, z.sort(e), z.var(e, 2), z.tile(e, (1, 2, 1, 1)), z.min(e), z.prod(e, 1), z.floor(e)]
    )


def held() -> set[str]:
    """Operators of models as they are served and as they learn, and the bookkeeping of checkpoints."""
    found: set[str] = set()
    for model in (*_layers(), *_applications()):
        shapes = [tf.TensorSpec([None, *i.shape[1:]], i.dtype) for i in model.inputs]
        for training in (False, True):
            call = tf.function(lambda given, model=model, training=training: model(given, training=training))
            found |= _names(call.get_concrete_function(shapes[0] if len(shapes) == 1 else shapes).graph.as_graph_def())
        print(model.name, len(found), flush=True)
        keras.backend.clear_session()
    with tempfile.TemporaryDirectory() as folder:
        keras.Sequential([keras.Input((4,)), kl.Dense(2), kl.Dropout(0.1)]).export(folder, verbose=False)
        saved = saved_model_pb2.SavedModel.FromString(Path(folder, "saved_model.pb").read_bytes())
    return found | _names(saved.meta_graphs[0].graph_def)


def _names(graph: Any) -> set[str]:
    return {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}


def main() -> None:
    known = registered()
    names = (converted() | held() | set(OTHERS)) & set(known)
    head = HEAD.format(tf2onnx=tf2onnx.__version__, keras=keras.__version__, tensorflow=tf.__version__)
    OPERATORS.write_text(head + "".join(f"{name}\n" for name in sorted(names)))
    stateful = sorted(name for name in names if known[name].is_stateful)
    print(f"{len(names)} operators, of which with state: {' '.join(stateful)}")


if __name__ == "__main__":
    main()
