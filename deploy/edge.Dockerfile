# The satellite side: encoder-node, for linux/amd64 and linux/arm64 (`docker buildx build --platform ...`): every
# dependency has wheels for both, nothing is compiled. No torch, no GDAL; `--build-arg EXTRA=[edge-gdal]` adds GDAL.
#   docker build -f deploy/edge.Dockerfile -t downlink-edge .
FROM python:3.11-bookworm AS build
ARG EXTRA=""
WORKDIR /src
COPY pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
COPY downlink downlink
COPY encoder_node encoder_node
COPY decoder_node decoder_node
COPY training training
COPY evaluation evaluation
COPY models models
RUN python -m venv /opt/downlink \
 && /opt/downlink/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRA}"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/downlink /opt/downlink
RUN useradd --system --uid 10001 --home-dir /var/lib/encoder-node --create-home encoder-node
USER 10001
VOLUME /var/lib/encoder-node
EXPOSE 9109
ENTRYPOINT ["/opt/downlink/bin/encoder-node"]
CMD ["run", "--outbox", "/var/lib/encoder-node", "--ground", "ground:50551", "--metrics", "0.0.0.0:9109"]
