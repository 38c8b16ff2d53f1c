# syntax=docker/dockerfile:1

# The container image, in the shape of Text Generation Inference's: the server on port 80, flags
# after the image's name, downloads in /data.
#
#   docker build -t millstream --build-arg GIT_SHA="$(git rev-parse HEAD)" .
#   docker run -p 8080:80 millstream                       the demo model that is embedded
#   docker run -p 8080:80 -v "$PWD/data:/data" millstream --model-id ORG/NAME
#
#   docker build -t millstream:cuda --target cuda --build-arg GIT_SHA="$(git rev-parse HEAD)" .
#   docker run --gpus all -p 8080:80 -v "$PWD/data:/data" millstream:cuda --model-id ORG/NAME
#
# `sources` is what every device's executable is built from, `runtime` what every image has in
# common; a device adds one stage that builds and one that copies. The last stage is the default.

# Build and runtime are of the same Debian, so that the executable finds the libc it was linked to.
ARG DEBIAN=bookworm
ARG RUNTIME=debian:${DEBIAN}-slim

FROM rust:1-slim-${DEBIAN} AS sources
WORKDIR /usr/src/millstream
COPY Cargo.toml Cargo.lock ./
COPY proto proto
COPY kernels kernels
COPY backends backends
COPY router router
COPY benches benches
COPY src src

FROM sources AS build-cpu
ARG GIT_SHA
# What cargo keeps between builds stays outside of the layers, so the executable is copied out of
# it in the same step. Manifests that name TGI's own command start the same way, by the link.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/usr/src/millstream/target \
    cargo build --release --locked --bin millstream \
    && install -D target/release/millstream /out/usr/local/bin/millstream \
    && ln -s millstream /out/usr/local/bin/text-generation-launcher

FROM ${RUNTIME} AS runtime
# Group 0 may write as well: some platforms choose the user by themselves, always in that group.
RUN useradd --uid 1000 --gid 0 --home-dir /data --no-create-home --shell /usr/sbin/nologin \
        millstream \
    && install --directory --owner=1000 --group=0 --mode=0775 /data
# DEFAULT_HOSTNAME, because the runtime puts the container's name into HOSTNAME.
ENV HF_HOME=/data \
    PORT=80 \
    DEFAULT_HOSTNAME=0.0.0.0
VOLUME /data
EXPOSE 80
# By number, so that a cluster can tell that it is not root. No capability is needed for port 80
# where net.ipv4.ip_unprivileged_port_start is 0, as Docker sets it in every container; elsewhere
# set that, or PORT. A capability on the file would keep it from starting with `--cap-drop ALL`.
USER 1000:0
# Streams may finish for GRACEFUL_TERMINATION_TIMEOUT, 90 s; `docker stop` needs `-t 100`.
STOPSIGNAL SIGTERM
# A lost worker is not ready for a while and comes back; only what stays away that long is ill.
# A download counts as start. The port is that of PORT, not of a flag.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60m --retries=8 \
    CMD ["/usr/local/bin/millstream", "health"]
ENTRYPOINT ["/usr/local/bin/millstream"]
ARG GIT_SHA
LABEL org.opencontainers.image.title="Millstream" \
      org.opencontainers.image.description="High-throughput server for large language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${GIT_SHA}"

# What the worker on a GPU links at run time, of CUDA's libraries, is cuBLAS alone; the driver comes
# with the host. Built without a GPU: the compiler is the Python package index's.
FROM sources AS build-cuda
ARG GIT_SHA
ARG CUBLAS=13.0.2.14
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/usr/src/millstream/target \
    kernels/install-nvcc \
    && cargo build --release --locked --features cuda --bin millstream --bin millstream-cuda \
    && install -D -t /out/usr/local/bin target/release/millstream target/release/millstream-cuda \
    && ln -s millstream /out/usr/local/bin/text-generation-launcher
RUN python3 -m venv /pip \
    && /pip/bin/pip install --quiet --no-deps --no-compile --target /cublas "nvidia-cublas==$CUBLAS" \
    && install -D -t /out/usr/local/lib/cuda \
        /cublas/nvidia/cu13/lib/libcublas.so.13 /cublas/nvidia/cu13/lib/libcublasLt.so.13 \
    && rm -rf /cublas /pip

FROM runtime AS cuda
COPY --from=build-cuda /out/ /
# The container runtime adds the driver's libraries for these.
ENV LD_LIBRARY_PATH=/usr/local/lib/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build-cpu /out/ /
