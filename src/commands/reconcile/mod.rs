//! `sconce reconcile`: holds the ledger against a provider's own bill, and takes over what the bill says.
//!
//! Lines of the bill find their attempts by the upstream's own name for each. What is left of the bill then belongs
//! to attempts whose names nobody knows: those that a crash or a caller cut off, which the ledger counts at an upper
//! bound or an estimate. Together they are given what is left, each in proportion to what was counted for it.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::api::Span;
use crate::config::{Machine, RawConfig, ServeArgs, Settings};
use crate::ledger::{Config, Ledger, Reader, Settled, nano_usd, usd};

/// What to compare.
#[derive(Debug, Args)]
pub struct ReconcileArgs {
    /// The bill: a CSV file with a header; a column `id` or `request_id` (may be empty), and one `cost` or `cost_usd`
    #[arg(value_name = "FILE")]
    bill: PathBuf,
    /// The settings that say where the ledger is
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The upstream that the bill is from
    #[arg(long, value_name = "NAME")]
    upstream: String,
    /// The first day of the bill, such as 2026-01-31 [default: 30 days before the last]
    #[arg(long, value_name = "DAY")]
    from: Option<String>,
    /// The last day of the bill [default: today]
    #[arg(long, value_name = "DAY")]
    to: Option<String>,
    /// Take over what the bill says; without it, only the difference is printed. A ledger in a file is changed while
    /// no server has it
    #[arg(long)]
    apply: bool,
}

/// One line of a bill.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Charge {
    id: Option<String>,
    nusd: u64,
}

/// What a bill and a ledger make of each other.
#[derive(Debug, Default, PartialEq, Eq)]
struct Matched {
    /// Attempts whose amount the bill changes, with the bill's.
    changes: Vec<(Settled, u64)>,
    /// Nano-USD of the ledger before.
    ledger_nusd: u64,
    /// Nano-USD of the bill.
    bill_nusd: u64,
    /// Lines that found their attempt.
    found: usize,
    /// Attempts that were given a share of what was left.
    shared: usize,
    /// What is left of the bill although no attempt can have it.
    unexplained_nusd: u64,
    /// Attempts that the provider named and the bill does not hold.
    missing: usize,
}

/// Compares, prints, and takes over.
///
/// Errors: one message for people.
pub fn run(args: &ReconcileArgs) -> Result<(), Box<dyn Error>> {
    let raw = RawConfig::read(ServeArgs {
        config: Some(args.config.clone()),
        ..ServeArgs::default()
    })?;
    let settings = Settings::resolve(raw, &Machine::detect())?;
    let config = settings.ledger.ok_or("these settings keep no ledger")?;
    let text =
        std::fs::read_to_string(&args.bill).map_err(|e| format!("{}: {e}", args.bill.display()))?;
    let bill = read(&text).map_err(|e| format!("{}: {e}", args.bill.display()))?;
    let days = Span::read(args.from.as_deref(), args.to.as_deref(), config.zone)?;
    let query = days.query(Vec::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let settled = runtime.block_on(async {
        let mut reader = Reader::open(&config.place, config.zone).await?;
        reader
            .settled(&args.upstream, query.from_ms, query.to_ms)
            .await
    })?;
    if settled.is_empty() {
        return Err(format!(
            "the ledger knows of nothing at upstream `{}` in these days",
            args.upstream
        )
        .into());
    }
    let matched = compare(settled, &bill);
    let mut text = said(&matched)?;
    if args.apply {
        apply(config, matched.changes, &runtime)?;
        text += "The ledger holds what the bill says now.\n";
    } else if !matched.changes.is_empty() {
        text += "Nothing was changed; --apply takes the bill's amounts over.\n";
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn apply(
    config: Config,
    changes: Vec<(Settled, u64)>,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), Box<dyn Error>> {
    let ledger = Ledger::open(config)?;
    runtime.block_on(ledger.adjust(changes))?;
    ledger.close();
    Ok(())
}

/// Reads a bill. Errors: what is wrong with which line.
fn read(text: &str) -> Result<Vec<Charge>, String> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|e| e.to_string())?.clone();
    let column = |names: &[&str]| {
        let named = |header: &str| {
            names
                .iter()
                .any(|name| header.trim().eq_ignore_ascii_case(name))
        };
        headers.iter().position(named)
    };
    let id = column(&["id", "request_id"]);
    let cost = column(&["cost", "cost_usd"]).ok_or("it has no column `cost` or `cost_usd`")?;
    let mut charges = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let line = index + 2;
        let record = record.map_err(|e| format!("line {line}: {e}"))?;
        let amount = record.get(cost).unwrap_or_default().trim();
        let nusd = nano_usd(amount)
            .and_then(|(nano, more)| nano.checked_add(u64::from(more)))
            .ok_or_else(|| format!("line {line}: the cost must be US dollars such as 0.00021"))?;
        let id = id.and_then(|id| record.get(id)).map(str::trim);
        charges.push(Charge {
            id: id.filter(|id| !id.is_empty()).map(str::to_owned),
            nusd,
        });
    }
    Ok(charges)
}

/// Holds attempts against a bill.
fn compare(settled: Vec<Settled>, bill: &[Charge]) -> Matched {
    let mut matched = Matched {
        ledger_nusd: settled.iter().map(|row| row.nusd).sum(),
        bill_nusd: bill.iter().map(|charge| charge.nusd).sum(),
        ..Matched::default()
    };
    let mut charges: HashMap<&str, u64> = HashMap::new();
    let mut unnamed: u64 = 0;
    for charge in bill {
        match &charge.id {
            Some(id) => *charges.entry(id).or_default() += charge.nusd,
            None => unnamed += charge.nusd,
        }
    }
    let (mut guessed, mut known) = (Vec::new(), 0);
    for row in settled {
        let id = row.request_id_upstream.clone();
        let charge = id.as_ref().and_then(|id| charges.remove(id.as_str()));
        match charge {
            Some(nusd) => {
                matched.found += 1;
                if nusd != row.nusd {
                    matched.changes.push((row, nusd));
                }
            }
            // Nobody but the bill knows what these came to.
            None if is_guess(&row) => guessed.push(row),
            None => {
                matched.missing += usize::from(row.nusd > 0);
                known += row.nusd;
            }
        }
    }
    // Lines without a name may be of attempts whose amount is known; the rest is what nobody knew of.
    let left = unnamed.saturating_sub(known) + charges.values().sum::<u64>();
    matched.missing = if unnamed > 0 { 0 } else { matched.missing };
    matched.shared = guessed.len();
    matched.unexplained_nusd = share(left, guessed, &mut matched.changes);
    matched
}

/// Gives attempts their parts of an amount, by what was counted for each, and none more than it can have cost.
/// Returns what is left over.
fn share(mut left: u64, guessed: Vec<Settled>, changes: &mut Vec<(Settled, u64)>) -> u64 {
    let mut weights: u128 = guessed.iter().map(|row| u128::from(row.worst_nusd)).sum();
    for row in guessed {
        let weight = u128::from(row.worst_nusd);
        // What is left in all goes down with the weights, so that the last one gets all of it.
        let part = match weights {
            0 => 0,
            weights => (u128::from(left) * weight).div_ceil(weights),
        };
        let part = u64::try_from(part)
            .unwrap_or(u64::MAX)
            .min(row.worst_nusd)
            .min(left);
        weights -= weight;
        left -= part;
        if part != row.nusd {
            changes.push((row, part));
        }
    }
    left
}

/// Whether an amount was never told by anybody, and the attempt has no name to find it by.
fn is_guess(row: &Settled) -> bool {
    let basis = &*row.basis;
    ["crash_upper_bound", "upper_bound", "estimate"].contains(&basis)
        && row.request_id_upstream.is_none()
}

fn said(matched: &Matched) -> Result<String, std::fmt::Error> {
    let Matched {
        changes,
        ledger_nusd,
        bill_nusd,
        found,
        shared,
        unexplained_nusd,
        missing,
    } = matched;
    let mut text = String::new();
    writeln!(text, "ledger  {} USD", usd(*ledger_nusd))?;
    writeln!(text, "bill    {} USD", usd(*bill_nusd))?;
    writeln!(
        text,
        "{found} lines of the bill found their attempts by name; {} amounts change.",
        changes.len()
    )?;
    if *shared > 0 {
        writeln!(
            text,
            "{shared} attempts were cut off before they had a name; they share the rest of the bill."
        )?;
    }
    if *missing > 0 {
        writeln!(
            text,
            "{missing} attempts that cost something are not on the bill; they stay as they are."
        )?;
    }
    if *unexplained_nusd > 0 {
        writeln!(
            text,
            "{} USD of the bill belong to nothing in the ledger: somebody else uses the same account, or the days differ.",
            usd(*unexplained_nusd)
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Spender;

    fn row(id: i64, name: Option<&str>, nusd: u64, basis: &str) -> Settled {
        Settled {
            id,
            reserved_ms: 0,
            spender: Spender {
                key: "k".into(),
                tenant: "k".into(),
                model: "m".into(),
                provider: None,
                upstream: "u".into(),
            },
            target: "t".to_owned(),
            request_id_upstream: name.map(str::to_owned),
            nusd,
            worst_nusd: nusd,
            basis: basis.to_owned(),
        }
    }

    #[test]
    fn bills_are_read_by_their_headers() {
        let bill =
            read("date,Request_ID,Cost_USD\n2026,a,0.5\n2026,,\".25\"\n2026,b,0.0000000001\n");
        let charge = |id: Option<&str>, nusd| Charge {
            id: id.map(str::to_owned),
            nusd,
        };
        let expected = vec![
            charge(Some("a"), 500_000_000),
            charge(None, 250_000_000),
            charge(Some("b"), 1),
        ];
        assert_eq!(bill, Ok(expected));
        for (text, wrong) in [
            ("id,amount\n", "no column"),
            ("id,cost\na,-1\n", "line 2"),
            ("id,cost\na,1\nb,NaN\n", "line 3"),
        ] {
            let error = read(text).expect_err(wrong);
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn named_lines_find_their_attempts_and_the_rest_is_shared() {
        let settled = vec![
            row(1, Some("a"), 10, "override"),
            row(2, Some("b"), 10, "override"),
            row(3, None, 30, "crash_upper_bound"),
            row(4, None, 10, "estimate"),
            row(5, Some("c"), 7, "override"),
        ];
        let bill = read("id,cost\na,0.00000001\nb,0.000000012\nx,0.00000002\n").expect("a bill");
        let matched = compare(settled, &bill);
        let changes: Vec<(i64, u64)> = matched.changes.iter().map(|(r, n)| (r.id, *n)).collect();
        assert_eq!(changes, [(2, 12), (3, 15), (4, 5)]);
        assert_eq!((matched.found, matched.shared, matched.missing), (2, 2, 1));
        let text = said(&matched).expect("words");
        assert!(text.contains("3 amounts change"), "{text}");
    }

    #[test]
    fn a_bill_without_names_is_compared_as_a_whole() {
        let settled = || {
            vec![
                row(1, Some("a"), 98, "override"),
                row(2, None, 5, "crash_upper_bound"),
                row(3, Some("b"), 9, "estimate"),
            ]
        };
        let charge = |nusd| [Charge { id: None, nusd }];
        // What is known is not given to anybody else.
        let matched = compare(settled(), &charge(110));
        let changes: Vec<(i64, u64)> = matched.changes.iter().map(|(r, n)| (r.id, *n)).collect();
        assert_eq!((changes, matched.unexplained_nusd), (vec![(2, 3)], 0));
        // And nobody gets more than it can have cost.
        let matched = compare(settled(), &charge(200));
        assert_eq!(matched.unexplained_nusd, 200 - 98 - 9 - 5);
        // What was taken over once is known.
        let mut again = settled();
        again[1] = row(2, None, 3, "reconciled");
        let matched = compare(again, &charge(110));
        assert_eq!((matched.changes, matched.unexplained_nusd), (Vec::new(), 0));
    }

    proptest! {
        #[test]
        fn what_is_shared_is_all_of_it_as_far_as_it_goes(
            weights in prop::collection::vec(0u64..1_000_000, 1..20),
            left in 0u64..30_000_000,
        ) {
            let rows = weights.iter().enumerate();
            let rows = rows.map(|(i, nusd)| row(i as i64, None, *nusd, "crash_upper_bound"));
            let most: u64 = weights.iter().sum();
            let mut changes = Vec::new();
            let rest = share(left, rows.clone().collect(), &mut changes);
            let amounts: HashMap<i64, u64> = changes.iter().map(|(r, n)| (r.id, *n)).collect();
            let sum: u64 = rows.map(|r| amounts.get(&r.id).copied().unwrap_or(r.nusd)).sum();
            prop_assert_eq!(sum + rest, left);
            prop_assert_eq!(sum, left.min(most));
        }
    }
}
