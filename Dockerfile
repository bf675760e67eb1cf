# One image for the server and every client: `fedlab` with all it needs. docker-compose.yml starts it.
#
# TORCH_INDEX is the address of a package index with other builds of torch and torchvision. Without one they come from
# where pip looks, whose builds for x86-64 hold CUDA, run without a GPU too, and take some 5 GB more than builds for CPUs.
FROM python:3.11-slim AS dependencies
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/fedlab
ENV PATH=/opt/fedlab/bin:$PATH
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-deps --index-url "$TORCH_INDEX" -c constraints.txt torch torchvision; \
    fi \
    && pip install -c constraints.txt -r requirements.txt

FROM dependencies AS package
COPY README.md LICENSE setup.py ./
COPY fedlab fedlab
COPY strategies strategies
COPY server server
COPY client client
COPY src src
RUN pip install --no-deps --prefix /opt/package .

FROM python:3.11-slim

LABEL org.opencontainers.image.title="fedlab" \
      org.opencontainers.image.description="Federations whose server owns labelled source data and whose clients own unlabelled target domains" \
      org.opencontainers.image.licenses="Apache-2.0"

# Libraries of the system that wheels ask for and do not bring: RDKit's drawing is linked against X11. They are found by
# `fedlab doctor`, and compared with this line by tests/test_compose.py.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 libx11-6 libxext6 libxrender1 \
    && rm -rf /var/lib/apt/lists/*

# A fixed number, so that whoever mounts a folder of the host can give it to that owner. A named volume takes owner and
# mode of the folder it is first mounted at. No VOLUME: it would leave a nameless volume behind for each container.
RUN groupadd --gid 10001 fedlab \
    && useradd --uid 10001 --gid fedlab --create-home fedlab \
    && install --directory --owner=fedlab --group=fedlab --mode=0700 /certs /state \
    && install --directory --owner=fedlab --group=fedlab /runs /data

# Two layers: what fedlab depends on is some gigabytes, which a change of fedlab itself neither makes nor moves again.
COPY --from=dependencies /opt/fedlab /opt/fedlab
COPY --from=package /opt/package /opt/fedlab

ENV PATH=/opt/fedlab/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib

USER 10001:10001
WORKDIR /home/fedlab

# Whether a container is healthy depends on what it runs: docker-compose.yml asks a server and a client differently.
HEALTHCHECK NONE

ENTRYPOINT ["fedlab"]
CMD ["--help"]
