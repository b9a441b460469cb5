//! Models by their name: found in the cache that is shared with `huggingface_hub`, or downloaded into it.
//!
//! `name.rs` reads `org/name:tag`, `selection.rs` says which files of a repository are needed (pure), `cache.rs`
//! knows the layout on disk, `client.rs` asks the hub, `download.rs` carries files in: resumed, hashed, and put in
//! place whole. `catalogue.rs` knows small models by short names. `bundle.rs` packs what is cached into one file for a machine without a network.
//!
//! It runs before anything is served, on a runtime of its own that ends with it: `hf-hub` moves Xet files on a
//! runtime of several threads only. A model that is complete in the cache is used without asking anybody, so a start
//! is the same with and without a network. Nothing here opens a socket when the settings say offline.

mod bundle;
mod cache;
pub mod catalogue;
mod client;
mod download;
mod error;
mod fetch;
mod name;
mod progress;
mod selection;
mod settings;

pub use bundle::{BundledFile, BundledModel, Contents, export, import};
pub use cache::{Cache, CachedModel, Servable};
pub use error::{HubError, size};
pub use fetch::{Fetched, fetch, find, update};
pub use name::ModelName;
pub use settings::HubSettings;
