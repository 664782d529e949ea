# One image, two processes: `dippm-operator` and `dippm-webhook` (the chart sets the command of each Deployment).
#
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t dippm .
#
# EXTRAS names what the image can read beside ONNX, .pt2 and TorchScript: --build-arg EXTRAS=operator,huggingface,timm,paddle
# TORCH_INDEX names an index with CPU wheels of torch. Without it PyPI's build comes, which on x86-64 drags in
# several GB of CUDA libraries that the predictor never uses: it runs on the CPU.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=operator
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A mirror of PyPI for the rest; pip reads it from the environment.
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/dippm
WORKDIR /src
COPY constraints.txt ./
# torchvision, which timm needs, must be made for the same torch: it comes from the same index.
RUN case "${EXTRAS}" in *timm*|*train*) beside=torchvision ;; esac; \
    /opt/dippm/bin/pip install ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "$(grep '^torch==' constraints.txt)" ${beside:-}
COPY pyproject.toml README.md LICENSE ./
COPY predictor predictor
COPY operator operator
RUN /opt/dippm/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 65532 --no-create-home dippm
COPY --from=build /opt/dippm /opt/dippm
ENV PATH=/opt/dippm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 HOME=/tmp
USER 65532:65532
CMD ["dippm-operator"]
