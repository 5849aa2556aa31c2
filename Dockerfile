# GPUs:  docker build -t megatron-cpt .
# CPUs:  docker build -t megatron-cpt:cpu --target cpu .
#
# The first keeps torch, Transformer Engine and apex of its base, an NGC PyTorch image. That image has PIP_CONSTRAINT pin
# its packages for every pip; tools/install.sh pins its torch instead, and takes the rest from constraints.txt. Another
# base with Python 3.11 to 3.13 and torch >= 2.10: --build-arg BASE_IMAGE=...
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.09-py3
ARG CPU_IMAGE=python:3.12.11-slim-bookworm

FROM ${CPU_IMAGE} AS cpu
# PyTorch's package index of CPU builds, or empty for the default one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# g++ is for torch's compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/megatron_cpt
COPY . .
ENV PIP_NO_CACHE_DIR=1
RUN make install TORCH_INDEX="${TORCH_INDEX}" && useradd --create-home --uid 10001 cpt
ENV PATH=/opt/megatron_cpt/.venv/bin:${PATH} PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/cpt
CMD ["megatron-cpt", "doctor"]

FROM ${BASE_IMAGE} AS gpu
WORKDIR /opt/megatron_cpt
COPY . .
ENV PIP_NO_CACHE_DIR=1
RUN make install TORCH=system && useradd --create-home --uid 10001 cpt
ENV PATH=/opt/megatron_cpt/.venv/bin:${PATH} PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/cpt
CMD ["megatron-cpt", "doctor"]
