//! Amounts of money in words: nano-USD are counted, USD are said.

/// Nano-USD of a US dollar.
const USD: u64 = 1_000_000_000;

/// An amount of nano-USD as USD, without zeros at the end.
pub fn usd(nano: u64) -> String {
    let text = format!("{}.{:09}", nano / USD, nano % USD);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// An amount of USD, such as `0.00021`, in nano-USD, rounded down, and whether anything was beyond nine decimals;
/// none where it is no such amount, or too large to count.
pub fn nano_usd(text: &str) -> Option<(u64, bool)> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + decimals.len() == 0 || !digits(whole) || !digits(decimals) {
        return None;
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let (nine, rest) = decimals.split_at(decimals.len().min(9));
    let nano: u64 = format!("{nine:0<9}").parse().ok()?;
    let more = rest.bytes().any(|b| b != b'0');
    Some((whole.checked_mul(USD)?.checked_add(nano)?, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly_or_not_at_all() {
        for (text, nano) in [
            ("0", Some((0, false))),
            ("1", Some((1_000_000_000, false))),
            ("0.000000001", Some((1, false))),
            (".5", Some((500_000_000, false))),
            ("2.", Some((2_000_000_000, false))),
            ("0.0000000019", Some((1, true))),
            ("0.0000000010", Some((1, false))),
            ("18446744073.709551615", Some((u64::MAX, false))),
            ("18446744073.709551616", None),
            ("", None),
            (".", None),
            ("-1", None),
            ("1e3", None),
            ("NaN", None),
            ("1,5", None),
            ("١", None),
        ] {
            assert_eq!(nano_usd(text), nano, "{text}");
        }
        for nano in [0, 1, 10, 210_000, 1_000_000_000, u64::MAX] {
            assert_eq!(nano_usd(&usd(nano)), Some((nano, false)));
        }
    }
}
