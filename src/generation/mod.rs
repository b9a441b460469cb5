//! The vocabulary every floor shares: what a caller asks for, and what an answer is made of.
//!
//! It stands apart so that the door, the hall and both wings can speak without knowing each other:
//! plain data, validated once, with no I/O and no tensors. Every answer, wherever it was made, is one
//! [`EventStream`]. Nothing here knows a wire format, a status code or a tokenizer.

mod chat;
mod error;
mod event;
mod ids;
mod request;
mod route;
mod usage;

pub use chat::{Conversation, Message, Tool, ToolCall, ToolChoice};
pub use error::{Error, ErrorKind};
pub use event::{
    ChatPiece, Event, EventStream, Finish, FinishReason, PromptToken, Started, Timings, TokenEvent,
    TokenInfo,
};
pub use ids::{RequestId, TokenId};
pub use request::{
    ChatAsk, FrequencyRule, Grammar, InvalidSampling, Request, Sampling, StopRule, Tenant,
    TokenDetail,
};
pub use route::{Policy, Reason, RouteAsk, RouteNote, RouteNotes, RouteSlot, Side};
pub use usage::{Usage, UsageSource};
