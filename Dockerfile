FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY models models
COPY benches benches
COPY tests/it tests/it
RUN cargo build --profile dist --locked --bin sconce

FROM debian:bookworm-slim
# Certificates to know the hub and upstreams by.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --system --no-create-home --uid 10001 sconce && install --directory --owner sconce /data
# Models that are downloaded, the same as in TGI's image.
ENV HF_HOME=/data
VOLUME /data
COPY --from=build /build/target/dist/sconce /usr/local/bin/sconce
USER sconce
EXPOSE 3000
# Settings follow the image's name: `docker run … sconce --model-id /model`; a later --hostname wins.
ENTRYPOINT ["sconce", "serve", "--hostname", "0.0.0.0"]
