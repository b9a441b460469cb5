FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY models models
COPY benches benches
COPY tests/it tests/it
RUN cargo build --profile dist --locked --bin sconce

FROM debian:bookworm-slim
RUN useradd --system --no-create-home --uid 10001 sconce
COPY --from=build /build/target/dist/sconce /usr/local/bin/sconce
USER sconce
EXPOSE 3000
# Settings follow the image's name: `docker run … sconce --model-id /model`; a later --hostname wins.
ENTRYPOINT ["sconce", "serve", "--hostname", "0.0.0.0"]
