# The ground side: decoder-node with its page, and what a Dask worker of it needs (latent-downlink[ground,cube,cluster]).
#   docker build -f deploy/ground.Dockerfile -t downlink-ground .
#   docker run downlink-ground --help
#   docker run --entrypoint /opt/downlink/bin/dask downlink-ground worker tcp://scheduler:8786 --nthreads 1
FROM python:3.11-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
COPY downlink downlink
COPY encoder_node encoder_node
COPY decoder_node decoder_node
COPY training training
COPY evaluation evaluation
COPY models models
RUN python -m venv /opt/downlink \
 && /opt/downlink/bin/pip install --no-cache-dir --constraint constraints.txt ".[ground,cube,cluster]" "s3fs"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/downlink /opt/downlink
RUN useradd --system --uid 10002 --home-dir /var/lib/decoder-node --create-home decoder-node
USER 10002
VOLUME /var/lib/decoder-node
EXPOSE 50551 8080 9108
HEALTHCHECK --interval=30s --timeout=5s CMD ["/opt/downlink/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9108/metrics', timeout=4)"]
ENTRYPOINT ["/opt/downlink/bin/decoder-node"]
CMD ["serve", "--archive", "/var/lib/decoder-node", "--listen", "0.0.0.0:50551", "--insecure-listen", "--page", "0.0.0.0:8080", "--page-open", "--metrics", "0.0.0.0:9108"]
