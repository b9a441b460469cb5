//! What everything costs: one entry for each admitted request, one row for each time it left, and budgets.
//!
//! Money is held before bytes leave and settled when it is known what they came to; whatever happens in between, a
//! crash included, is counted at the upper bound. Amounts are whole nano-USD. Prices are other floors' business:
//! this one is told what a request can cost and what it did. Nothing here keeps a text of anybody.

mod budget;
mod entry;
mod handle;
mod money;
mod spike;
mod store;
mod usage;
mod watch;
mod window;
mod writer;

pub use budget::{Amount, Budget, Each, Exceeded, Left, Limit, OnExceed, Scope, Spender, Standing};
pub use entry::{ANONYMOUS, Attempt, Bill, Closing, Who, now_ms};
pub use handle::{Config, Held, Ledger, Tab};
pub use money::{nano_usd, usd};
pub use spike::SpikeConfig;
pub use store::{Place, StoreError};
pub use usage::{Dimension, Line, Minute, Query, Reader, Report, Settled};
pub use watch::{Alert, AlertKind, Watch, WatchConfig};
pub use window::{Period, Window, date_of, midnight_ms};
pub use writer::Refused;

#[cfg(test)]
mod tests;
