//! Which addresses a name may lead to, checked anew for every connection.
//!
//! A public upstream whose name suddenly points into this network is either an attack or a mistake, and the
//! request carries a credential: such answers are dropped, each for itself, and when none is left the
//! connection fails with a sentence that says so. A name for this machine must lead to this machine.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Which addresses count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// This machine.
    Loopback,
    /// What anybody on the internet could reach.
    Public,
    /// Any.
    Any,
}

impl Reach {
    /// Whether an address counts.
    pub(super) fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Loopback => canonical(address).is_loopback(),
            Self::Public => is_public(address),
            Self::Any => true,
        }
    }
}

/// How a name is looked up; tests give answers of their own.
pub(super) type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Asks the system.
pub(super) fn system() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let answers = tokio::net::lookup_host((name, 0)).await?;
            Ok(answers.map(|address| address.ip()).collect())
        })
    })
}

/// A name led nowhere that it may lead to.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` resolves to {what} only; set allow_private if that is meant")]
pub(super) struct Refused {
    name: String,
    what: &'static str,
}

/// Looks names up and drops the answers that do not count.
pub(super) struct Resolver {
    pub(super) lookup: Lookup,
    pub(super) reach: Reach,
    /// The configured proxy, which may stand anywhere; with one, no other name is looked up here.
    pub(super) proxy: Option<String>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let reach = if self.proxy.as_deref() == Some(&name) {
            Reach::Any
        } else {
            self.reach
        };
        let answers = (self.lookup)(name.clone());
        Box::pin(async move {
            let mut answers = answers.await?;
            let some = !answers.is_empty();
            answers.retain(|&address| reach.allows(address));
            if some && answers.is_empty() {
                let what = match reach {
                    Reach::Loopback => "other machines' addresses",
                    Reach::Public | Reach::Any => "private addresses",
                };
                return Err(Refused { name, what }.into());
            }
            let addresses = answers.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("reach", &self.reach)
            .finish_non_exhaustive()
    }
}

/// An IPv4 address in any of its IPv6 dresses, undressed.
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let embedded = |high: u16, low: u16| {
        let [p, q] = high.to_be_bytes();
        let [r, s] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(p, q, r, s))
    };
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) => embedded(g, h),
        // NAT64 (RFC 6052) and the IPv4-compatible form, `::` and `::1` left as they are.
        (0x64, 0xff9b, 0, 0, 0, 0) => embedded(g, h),
        (0, 0, 0, 0, 0, 0) if g != 0 => embedded(g, h),
        // 6to4 (RFC 3056).
        (0x2002, _, _, _, _, _) => embedded(b, c),
        _ => address,
    }
}

/// Whether the internet routes to it: none of the special ranges of the IANA registries.
fn is_public(address: IpAddr) -> bool {
    match canonical(address) {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let special = v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_documentation()
        || v4.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19))
        // Azure's platform address, which answers with metadata although it looks public.
        || v4 == Ipv4Addr::new(168, 63, 129, 16);
    !special
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [a, b, ..] = v6.segments();
    // Global unicast is 2000::/3; what lies in it for documents and for Teredo is left out.
    (a & 0xe000) == 0x2000 && !(a == 0x2001 && (b == 0x0db8 || b == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_in_every_dress() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.192",
            "198.18.0.1",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
            "2001:db8::1",
            "2001::1",
        ] {
            let address: IpAddr = private.parse().unwrap();
            assert!(!Reach::Public.allows(address), "{private}");
            assert!(Reach::Any.allows(address));
        }
        for public in [
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "18.1.2.3",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            let address: IpAddr = public.parse().unwrap();
            assert!(Reach::Public.allows(address), "{public}");
            assert!(!Reach::Loopback.allows(address));
        }
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(Reach::Loopback.allows(here.parse().unwrap()), "{here}");
        }
    }

    async fn resolve(
        answers: &'static [&'static str],
        reach: Reach,
        proxy: bool,
    ) -> Result<usize, String> {
        let resolver = Resolver {
            lookup: Arc::new(move |_| {
                Box::pin(async move { Ok(answers.iter().map(|a| a.parse().unwrap()).collect()) })
            }),
            reach,
            proxy: proxy.then(|| "name.example".to_owned()),
        };
        let addresses = resolver.resolve("name.example".parse().unwrap()).await;
        addresses.map(Iterator::count).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn every_answer_is_looked_at() {
        assert_eq!(
            resolve(&["10.0.0.1", "1.1.1.1"], Reach::Public, false).await,
            Ok(1)
        );
        assert_eq!(resolve(&["10.0.0.1"], Reach::Any, false).await, Ok(1));
        assert_eq!(resolve(&["10.0.0.1"], Reach::Public, true).await, Ok(1));
        assert_eq!(resolve(&[], Reach::Public, false).await, Ok(0));
        let refused = resolve(&["10.0.0.1", "::1"], Reach::Public, false)
            .await
            .unwrap_err();
        assert_eq!(
            refused,
            "`name.example` resolves to private addresses only; set allow_private if that is meant"
        );
        assert!(resolve(&["1.1.1.1"], Reach::Loopback, false).await.is_err());
    }
}
