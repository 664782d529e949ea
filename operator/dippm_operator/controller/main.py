"""`dippm-operator`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from functools import partial

from dippm.errors import DippmError
from dippm.frontend.isolation import lacking, spoken, walls_here
from dippm.processes import close_memory
from dippm_operator.controller.lease import LeaseLost
from dippm_operator.controller.run import run
from dippm_operator.controller.settings import parse_settings
from dippm_operator.controller.worker import PredictionWorker
from dippm_operator.predict import Predictor, ask

BAD_INPUT = 2
LOST = 1


def main(arguments: Sequence[str] | None = None, *, predictor: Predictor | None = None) -> int:
    """Run the operator; 0 when told to stop, 1 when the Lease was lost, 2 on settings that cannot be."""
    close_memory()  # it holds tokens and credentials, and starts what reads strangers' files
    try:
        settings = parse_settings(arguments)
    except DippmError as error:
        print(f"dippm-operator: {error}", file=sys.stderr)
        return BAD_INPUT
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if settings.log_level != "debug":
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # two lines for every change of every node
    walls = walls_here()
    logging.getLogger(__name__).log(logging.WARNING if lacking(walls) else logging.INFO, spoken(walls))
    kept = partial(ask, graphs=(settings.cache / "graphs", settings.graph_bytes))
    worker = PredictionWorker(predictor or kept, limit_seconds=settings.prediction_seconds)
    try:
        asyncio.run(run(settings, worker))
    except LeaseLost as lost:
        logging.getLogger(__name__).error("%s; stopping", lost)
        return LOST
    except DippmError as error:
        print(f"dippm-operator: {error}", file=sys.stderr)
        return BAD_INPUT
    finally:
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
