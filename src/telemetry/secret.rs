//! A text that must not be seen.

use std::fmt;
use std::sync::Arc;

/// A token: never printed, never written, overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<zeroize::Zeroizing<String>>);

impl Secret {
    /// Keeps a token.
    pub fn new(text: String) -> Self {
        Self(Arc::new(zeroize::Zeroizing::new(text)))
    }

    /// The token itself, for the header that carries it and for the log's redaction.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
