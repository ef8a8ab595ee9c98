# The server alone: ONNX Runtime, no torch. From the checkout's root:
#   docker build -f docker/serve.Dockerfile -t exitwise-serve .
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v "$PWD/photos.bundle:/bundle:ro" exitwise-serve
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /opt/exitwise \
    && /opt/exitwise/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve,text]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home exitwise
COPY --from=build /opt/exitwise /opt/exitwise
USER 10001
ENV PATH=/opt/exitwise/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["exitwise", "serve", "/bundle", "--host", "0.0.0.0"]
