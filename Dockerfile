# `ptune serve` in a container. Not run here: hadolint finds nothing, and the commands work outside
# of a container.
#   docker build -t ptune . && docker run --rm -p 8080:8080 -e PTUNE_TOKEN=… -v ./runs:/runs:ro ptune
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# The CPU build of torch; the default one brings gigabytes of CUDA.
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu torch \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[minilm,serve]'

FROM python:3.11-slim
COPY --from=build /venv /venv
RUN useradd --create-home --uid 10001 ptune
USER 10001
ENV PATH=/venv/bin:$PATH HF_HOME=/home/ptune/.cache/huggingface PYTHONUNBUFFERED=1
VOLUME /runs
EXPOSE 8080
# 0.0.0.0 is a public address, so the server asks for PTUNE_TOKEN.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/ready', timeout=4)"]
ENTRYPOINT ["ptune", "serve", "/runs", "--host", "0.0.0.0", "--port", "8080"]
