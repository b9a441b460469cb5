//! The server from outside: its own binary in a process of its own, spoken to over a socket.

mod auth;
mod bodies;
mod chat;
mod completions;
mod concurrency;
mod config;
mod connections;
mod demo;
mod errors;
mod grammar;
mod keys;
mod lifecycle;
mod messages;
mod metrics;
mod models;
mod platforms;
mod responses;
mod sampling;
mod text;
mod tls;
mod tools;
