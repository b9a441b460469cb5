//! `sconce key revoke`: takes one table out of the settings file, and no byte beside it.

use std::error::Error;
use std::path::PathBuf;

use clap::Args;
use toml_edit::{Document, Item};

use super::file;
use crate::config::parse_keys;

/// Flags of `sconce key revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Whose key
    #[arg(long)]
    name: String,

    /// Settings file that holds the keys
    #[arg(long, env = "SCONCE_CONFIG", value_name = "FILE")]
    config: PathBuf,
}

/// Removes the table of a name.
pub(super) fn run(args: &RevokeArgs) -> Result<(), Box<dyn Error>> {
    let RevokeArgs { name, config } = args;
    let _lock = file::lock(config)?;
    let old = file::read(config)?;
    file::check_form(&old, config)?;
    parse_keys(&old, config)?;
    let Some(new) = without(&old, name) else {
        return Err(format!("{}: there is no key `{name}`", config.display()).into());
    };
    let left = parse_keys(&new, config)?;
    file::replace(config, &new)?;
    eprintln!("Key `{name}` stands in {} no longer.", config.display());
    eprintln!("A running server forgets it when it gets SIGHUP, or is started anew.");
    if left.is_empty() {
        eprintln!(
            "It was the last one: a server started without keys and without API_KEY lets everyone in."
        );
    }
    Ok(())
}

/// The text without the table of a name and the blank line before it; none if there is no such table.
fn without(text: &str, name: &str) -> Option<String> {
    let document = Document::parse(text).ok()?;
    let tables = document.get("keys").and_then(Item::as_array_of_tables)?;
    let table = tables
        .iter()
        .find(|table| table.get("name").and_then(Item::as_str) == Some(name))?;
    // The header, and all values, whatever their order.
    let values = table.iter().filter_map(|(_, item)| item.span());
    let mut spans: Vec<_> = values.chain(table.span()).collect();
    spans.sort_by_key(|span| span.start);
    let first = spans.first()?.start;
    let last = spans.iter().map(|span| span.end).max()?;
    let start = text[..first].rfind('\n').map_or(0, |at| at + 1);
    let end = text[last..]
        .find('\n')
        .map_or(text.len(), |at| last + at + 1);
    let before = &text[..start];
    let before = before
        .strip_suffix("\r\n\r\n")
        .map(|_| &before[..start - 2])
        .or_else(|| before.strip_suffix("\n\n").map(|_| &before[..start - 1]))
        .unwrap_or(before);
    Some(format!("{before}{}", &text[end..]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_table_goes() {
        let text = "port = 1 # of the house\n\n# Alice from accounting\n[[keys]]\n  hash = 'x' # odd order\nname = 'alice'\n# inside\n\
                    expires = 2027-01-31\n# between\n\n[[keys]] # second\r\nname = \"bob\"\nhash = '''\ny'''\n\n# end\n";
        assert_eq!(
            without(text, "alice").as_deref(),
            Some(
                "port = 1 # of the house\n\n# Alice from accounting\n# between\n\n[[keys]] # second\r\nname = \"bob\"\nhash = '''\ny'''\n\n# end\n"
            )
        );
        assert_eq!(
            without(text, "bob").as_deref(),
            Some(
                "port = 1 # of the house\n\n# Alice from accounting\n[[keys]]\n  hash = 'x' # odd order\nname = 'alice'\n# inside\n\
                 expires = 2027-01-31\n# between\n\n# end\n"
            )
        );
        assert_eq!(without(text, "carol"), None);
        assert_eq!(without("[[keys]]\nname = 'a'", "a").as_deref(), Some(""));
        assert_eq!(without("port = 1", "a"), None);
    }

    proptest! {
        #[test]
        fn all_other_lines_stay(
            fields in prop::collection::vec(prop::collection::vec(0..5usize, 0..6), 1..6),
            gaps in prop::collection::vec(0..4usize, 6),
            chosen in 0..6usize,
        ) {
            const FIELDS: [&str; 5] = [
                "burst = 1",
                "tenant = 't#[[keys]]'",
                "\thash='h'  # why",
                "max = { a = 1 }",
                "m = [\n  1, # one\n  2,\n]",
            ];
            const GAPS: [&str; 4] = ["", "\n", "# a remark: [[keys]]\n", "\n# a\n\n# b\n\n"];
            let chosen = chosen % fields.len();
            let mut text = format!("port = 1\n{}", GAPS[gaps[0]]);
            let mut expected = text.clone();
            for (index, chosen_fields) in fields.iter().enumerate() {
                let distinct: BTreeSet<_> = chosen_fields.iter().collect();
                let mut lines: Vec<String> =
                    distinct.into_iter().map(|field| FIELDS[*field].to_owned()).collect();
                lines.insert(lines.len() / 2, format!("name = 'key-{index}'"));
                let table = format!("[[keys]]\n{}\n", lines.join("\n"));
                let gap = GAPS[gaps[index + 1]];
                text += &(table.clone() + gap);
                if index != chosen {
                    expected += &table;
                } else if expected.ends_with("\n\n") {
                    expected.pop();
                }
                expected += gap;
            }
            let name = format!("key-{chosen}");
            prop_assert_eq!(without(&text, &name), Some(expected));
        }
    }
}
