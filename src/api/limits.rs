//! What one caller may take of a server that others share: requests a minute, and requests at once.
//!
//! A request's place is held until its answer has been sent to the end or was given up, so that a stream
//! counts for as long as it lasts. Limits of a key come before those of the server: a caller beyond its own
//! share never takes a permit that another could use.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error;
use super::keys::{Caller, KeyLimits};

/// The limits of one key and what is used of them.
#[derive(Debug)]
pub(super) struct Limits {
    name: Arc<str>,
    /// Requests a minute, and what keeps count of them.
    rate: Option<(NonZeroU32, DefaultDirectRateLimiter)>,
    places: Option<Arc<Semaphore>>,
}

/// A request beyond a limit.
#[derive(Debug)]
pub(super) struct Refused {
    /// Which limit of which key.
    pub(super) message: String,
    /// Seconds after which another try may pass.
    pub(super) retry_after_s: u64,
    /// Requests a minute, where those are what is used up.
    pub(super) per_minute: Option<NonZeroU32>,
}

impl Limits {
    pub(super) fn new(name: &str, limits: KeyLimits) -> Self {
        let KeyLimits {
            requests_per_minute,
            burst,
            max_concurrent_requests,
        } = limits;
        let quota = |rate: NonZeroU32| Quota::per_minute(rate).allow_burst(burst.unwrap_or(rate));
        Self {
            name: name.into(),
            rate: requests_per_minute.map(|rate| (rate, RateLimiter::direct(quota(rate)))),
            places: max_concurrent_requests
                .map(|places| Arc::new(Semaphore::new(places.get() as usize))),
        }
    }

    /// Counts a request and takes its place, if it needs one. A request without a place counts towards the
    /// rate: trying is not free.
    fn enter(&self) -> Result<Option<OwnedSemaphorePermit>, Refused> {
        if let Some((per_minute, rate)) = &self.rate {
            rate.check().map_err(|not_until| {
                let wait = not_until.wait_time_from(DefaultClock::default().now());
                Refused {
                    message: format!("Rate limit of key `{}` exceeded", self.name),
                    retry_after_s: wait.as_secs() + 1,
                    per_minute: Some(*per_minute),
                }
            })?;
        }
        let place = self.places.clone().map(Semaphore::try_acquire_owned);
        place.transpose().map_err(|_| Refused {
            message: format!("Concurrency limit of key `{}` exceeded", self.name),
            retry_after_s: 1,
            per_minute: None,
        })
    }
}

/// Lets a caller's request pass within its limits; only `POST`s are counted, since those are what costs.
pub(super) async fn keep_to_limits(caller: Caller, request: Request, next: Next) -> Response {
    let Some(limits) = caller.limits.filter(|_| request.method() == Method::POST) else {
        return next.run(request).await;
    };
    match limits.enter() {
        Ok(None) => next.run(request).await,
        Ok(Some(place)) => next.run(request).await.map(|body| {
            Body::new(Placed {
                body,
                _place: place,
            })
        }),
        Err(refused) => error::beyond_limit(refused),
    }
}

/// An answer's body that holds its request's place until it has been sent or is given up.
struct Placed {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests_per_minute: u32, burst: u32, places: u32) -> Limits {
        let limits = KeyLimits {
            requests_per_minute: NonZeroU32::new(requests_per_minute),
            burst: NonZeroU32::new(burst),
            max_concurrent_requests: NonZeroU32::new(places),
        };
        Limits::new("alice", limits)
    }

    #[test]
    fn a_rate_allows_its_burst_and_then_says_when_to_come_back() {
        let limits = limits(1, 3, 0);
        for _ in 0..3 {
            assert!(limits.enter().is_ok());
        }
        let refused = limits.enter().expect_err("beyond the burst");
        assert_eq!(refused.message, "Rate limit of key `alice` exceeded");
        assert!((1..=61).contains(&refused.retry_after_s), "{refused:?}");
        assert_eq!(refused.per_minute, NonZeroU32::new(1));
    }

    #[test]
    fn a_place_is_free_again_when_its_body_is_gone() {
        let limits = limits(0, 0, 1);
        let place = limits.enter().expect("the first").expect("a place");
        let refused = limits.enter().expect_err("no second place");
        assert_eq!(refused.message, "Concurrency limit of key `alice` exceeded");
        let body = Placed {
            body: Body::from("abc"),
            _place: place,
        };
        assert_eq!(refused.per_minute, None);
        assert_eq!(body.size_hint().exact(), Some(3));
        assert!(limits.enter().is_err());
        drop(body);
        assert!(limits.enter().is_ok());
    }

    #[test]
    fn without_limits_everything_passes() {
        let limits = limits(0, 0, 0);
        assert!((0..1000).all(|_| limits.enter().is_ok()));
    }
}
