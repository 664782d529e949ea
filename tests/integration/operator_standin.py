"""`dippm-operator` with a predictor that believes the file: its text says how many MiB the model needs.

Run as a process by the control-plane tests of what comes before and after the predictor.
"""

from __future__ import annotations

import sys

from tests.operator_predictions import prediction_of

from dippm.errors import ModelFormatError
from dippm.prediction import Prediction
from dippm_operator.controller.main import main
from dippm_operator.predict import Question


def believe(question: Question) -> Prediction:
    """Predict what the file says; text that is no number is no model."""
    text = question.path.read_text()
    if not text.strip().isdecimal():
        raise ModelFormatError(f"{question.uri} is no model; name an ONNX file, a .pt2 or a TorchScript .pt.")
    return prediction_of(float(text), case=question.case, policy=question.policy)


if __name__ == "__main__":
    sys.exit(main(predictor=believe))
