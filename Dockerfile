# The server and the models that the project ships: no torch, no compiler, no root.
# Layers from the slowest to the quickest to change: Python, dependencies, models, our code.

FROM python:3.11-slim AS dependencies
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# Only the dependencies, so that this layer is built again when they change and not when the code does. The environment
# holds no pip: the one of the base image works on it from outside.
RUN python -m venv --without-pip /opt/venv \
    && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > server.txt \
    && pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt -r server.txt

FROM python:3.11-slim AS wheel
WORKDIR /build
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt setuptools
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .

FROM python:3.11-slim
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lstm-serve" \
      org.opencontainers.image.description="Serves recurrent models whose sessions keep their state" \
      org.opencontainers.image.revision="$REVISION"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lstm-serve \
    && install -d -o 10001 -g 10001 /data
COPY --from=dependencies /opt/venv /opt/venv
COPY model_repository /model_repository
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /wheel/*.whl
# ONNX Runtime from 1.29 on calls home (and then delays our exit where it cannot) unless it is told not to.
ENV ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/venv/bin:$PATH \
    LSTM_SERVE_HOST=0.0.0.0 \
    LSTM_SERVE_PORT=8000 \
    LSTM_SERVE_MODEL_REPOSITORY=/model_repository \
    LSTM_SERVE_STORE=sqlite:/data/sessions.db
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['LSTM_SERVE_PORT']), timeout=3); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["lstm-serve", "serve"]
