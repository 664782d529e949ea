"""The predictor in a process of its own: torch loads once there, and the operator's loop never waits for it."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial

from dippm.errors import DippmError
from dippm.prediction import Prediction
from dippm.processes import close_memory
from dippm_operator.predict import Predictor, Question, ask

logger = logging.getLogger(__name__)
_LAST_SECONDS = 5.0
"""What the predicting process has to be gone once it is told to end."""


class PredictorStopped(DippmError):
    """The predicting process died or took too long; it is started again for the next question."""

    reason = "PredictorStopped"


class PredictorFault(DippmError):
    """The predictor met a fault of its own."""

    reason = "PredictorFault"


class PredictionWorker:
    """Asks a predictor in one child process, one question at a time."""

    def __init__(self, predictor: Predictor = ask, *, limit_seconds: float = 600.0) -> None:
        self._predictor = predictor
        self._limit_seconds = limit_seconds
        self._pool: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def __call__(self, question: Question) -> Prediction:
        """The answer. Raises DippmError: the predictor's own, PredictorStopped or PredictorFault."""
        async with self._turn:
            if self._pool is None:
                # spawn: a fork of a process with threads and an event loop may hang.
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=close_memory)
            future = asyncio.get_running_loop().run_in_executor(self._pool, self._predictor, question)
            try:
                return await asyncio.wait_for(future, self._limit_seconds)
            except DippmError:
                raise
            except TimeoutError:
                self.close()
                raise PredictorStopped(
                    f"{question.uri} was not predicted within {self._limit_seconds:.0f} s (--prediction-seconds of the "
                    "operator); is the model that large?"
                ) from None
            except BrokenExecutor:
                self.close()
                raise PredictorStopped(
                    f"the predicting process died on {question.uri}, most likely for want of memory; "
                    "raise operator.resources.limits.memory of the chart."
                ) from None
            except Exception as error:  # whatever a strange model trips over must end as a condition that says so
                logger.exception("a fault of the predictor on %s", question.uri)
                raise PredictorFault(
                    f"{question.uri}: the predictor met a fault of its own ({type(error).__name__}: {error}); "
                    "please report it with the model's architecture."
                ) from error

    def close(self) -> None:
        """End the child process; a question under way is not waited for."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        # Before Python 3.14 the executor has no public way to end a worker that is busy.
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        # The executor's thread must be gone before the interpreter ends: at exit it is written to while it closes.
        ending = threading.Thread(target=partial(pool.shutdown, wait=True, cancel_futures=True), daemon=True)
        ending.start()
        ending.join(_LAST_SECONDS)
