# megatron_cpt on an NGC PyTorch image: its torch, Transformer Engine and apex are kept.
#   docker build -t megatron-cpt .
# Any base with Python 3.11 or 3.12 and torch >= 2.10 works: --build-arg BASE_IMAGE=...
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.09-py3
FROM ${BASE_IMAGE}

WORKDIR /opt/megatron_cpt
COPY . .
RUN make install TORCH=system
ENV PATH=/opt/megatron_cpt/.venv/bin:${PATH}
CMD ["megatron-cpt", "doctor"]
