//! The server from outside: its own binary in a process of its own, spoken to over a socket.

mod auth;
mod bodies;
mod concurrency;
mod config;
mod connections;
mod errors;
mod grammar;
mod keys;
mod lifecycle;
mod metrics;
mod models;
mod sampling;
mod text;
mod tls;
