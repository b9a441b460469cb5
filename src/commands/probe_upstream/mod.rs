//! `sconce probe-upstream`: asks targets what they can do, by requests of our own, and keeps what was found.
//!
//! It says first what leaves, where to and what it costs at worst, and sends nothing before somebody agrees: once
//! to questions without a text, which show what a target is and costs, then to the requests themselves. No caller's
//! text is among it.

mod plan;
mod read;
mod send;

use std::error::Error;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;

use self::plan::{Ask, Plan, Probe, model_name, plan, usd};
use self::read::{Answer, Answers};
use self::send::Way;
use crate::config::{Machine, RawConfig, ServeArgs, Settings};
use crate::remote::capability_store::{CapabilityStore, Findings};
use crate::remote::catalog::{Catalogue, Facts, Shape};
use crate::remote::{Config, Fault, TargetConfig, UpstreamConfig};

/// What to probe.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// An upstream, all of whose targets are probed, or one target
    pub name: String,
    /// The settings that name it
    #[arg(long)]
    pub config: PathBuf,
    /// Send without asking; needed where no terminal is at hand
    #[arg(long)]
    pub yes: bool,
}

/// Probes what is named, if somebody agrees.
///
/// Errors: one message for people.
pub fn run(args: &ProbeArgs) -> Result<(), Box<dyn Error>> {
    let raw = RawConfig::read(ServeArgs {
        config: Some(args.config.clone()),
        ..ServeArgs::default()
    })?;
    let settings = Settings::resolve(raw, &Machine::detect())?;
    let remote = settings.remote.as_ref();
    let remote = remote.ok_or("the settings name no upstream")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(probe_named(args, &settings, remote))
}

async fn probe_named(
    args: &ProbeArgs,
    settings: &Settings,
    remote: &Config,
) -> Result<(), Box<dyn Error>> {
    let (upstream, targets) = named(&args.name, remote)?;
    if let Some(why) = &upstream.disabled {
        return Err(format!("upstream `{}` cannot be used: {why}", upstream.name).into());
    }
    let mut store = CapabilityStore::open(remote.state_dir.as_deref());
    if remote.state_dir.is_none() {
        return Err("there is nowhere to keep what is found; set `state_dir` of `[remote]`".into());
    }
    let mut way = Way::open(settings, remote, upstream)?;
    let catalogue = Catalogue::open(remote);
    let mut output = io::stdout().lock();
    let mut stdin = io::stdin().lock();
    let at_terminal = stdin.is_terminal();
    let mut terminal = Terminal {
        input: at_terminal.then_some(&mut stdin as &mut dyn BufRead),
        output: &mut output,
    };
    introduce(terminal.output, upstream, way.host())?;
    if !args.yes {
        agree(&mut terminal)?;
    }
    if let Err(fault) = catalogue.learn(&upstream.name, &way.fetch()).await {
        let why = fault.message;
        writeln!(
            terminal.output,
            "{} tells nothing of itself: {why}",
            way.host()
        )?;
    }
    let (shape, now) = (Shape::default(), SystemTime::now());
    let subjects: Vec<_> = targets
        .into_iter()
        .filter_map(|target| {
            Some(Subject {
                facts: catalogue.facts(target, &shape, now)?,
                target: target.clone(),
                host: way.host().to_owned(),
            })
        })
        .collect();
    let date = chrono::DateTime::<chrono::Utc>::from(now).format("%Y-%m-%d");
    let date = date.to_string();
    let send = |subject: Subject, probe| {
        let way = way.clone();
        async move { way.send(&subject.facts, probe).await }
    };
    let probed = probe(&subjects, args.yes, terminal, &mut store, &date, send).await;
    way.close();
    probed
}

/// The upstream and the targets of a name: all of an upstream's, or the one that is called so.
fn named<'a>(
    name: &str,
    remote: &'a Config,
) -> Result<(&'a UpstreamConfig, Vec<&'a TargetConfig>), String> {
    let upstream = |name: &str| remote.upstreams.iter().find(|known| &*known.name == name);
    let mut targets = remote.targets.iter();
    if let Some(upstream) = upstream(name) {
        let targets = targets.filter(|target| &*target.upstream == name);
        return Ok((upstream, targets.collect()));
    }
    let target = targets.find(|target| &*target.name == name);
    target
        .and_then(|target| Some((upstream(&target.upstream)?, vec![target])))
        .ok_or_else(|| format!("no upstream and no target is called `{name}`"))
}

/// One target to probe.
#[derive(Debug, Clone)]
struct Subject {
    /// As it is configured.
    target: TargetConfig,
    /// As it is known.
    facts: Facts,
    /// Host and port that the requests go to.
    host: String,
}

/// Who is asked, and where the words go.
struct Terminal<'a> {
    /// Where an answer is read from; none where nobody could give one.
    input: Option<&'a mut dyn BufRead>,
    /// Where everything is written.
    output: &'a mut dyn Write,
}

/// Probes the targets one after the other and keeps what was found of each as soon as it is found.
///
/// `send` makes one request to a subject through the gate; an answer of any status is an `Ok`. `date` is the day,
/// `2026-11-21`.
///
/// Errors: nobody agreed, no target can be probed, a target does not answer, or the findings cannot be kept.
async fn probe<S, A>(
    subjects: &[Subject],
    yes: bool,
    mut terminal: Terminal<'_>,
    store: &mut CapabilityStore,
    date: &str,
    send: S,
) -> Result<(), Box<dyn Error>>
where
    S: Fn(Subject, Probe) -> A,
    A: Future<Output = Result<Answer, Fault>>,
{
    let mut planned = Vec::new();
    for subject in subjects {
        let name = &subject.target.name;
        match plan(&subject.facts.target) {
            Ok(plan) => {
                announce(terminal.output, subject, &plan)?;
                planned.push((subject, plan));
            }
            Err(why) => writeln!(terminal.output, "target `{name}` is not probed: {why}")?,
        }
    }
    if planned.is_empty() {
        return Err("there is nothing to probe".into());
    }
    if !yes {
        agree(&mut terminal)?;
    }
    for (subject, plan) in planned {
        let answers = ask_all(subject, plan, &send).await?;
        let found = answers.findings();
        show(terminal.output, subject, answers.provider(), &found)?;
        store.put(&subject.target, found, date);
        let path = store.save()?.display();
        writeln!(
            terminal.output,
            "kept in {path}; a running server reads it at its next start"
        )?;
    }
    Ok(())
}

/// Says what is asked before it is known what a probing costs.
fn introduce(output: &mut dyn Write, upstream: &UpstreamConfig, host: &str) -> io::Result<()> {
    let with = match upstream.token {
        Some(_) => "with the upstream's token",
        None => "without a token",
    };
    let wakes = match upstream.scales_to_zero {
        true => {
            "; what is sent after them wakes the endpoint if it sleeps, and its machine costs from then on"
        }
        false => "",
    };
    writeln!(
        output,
        "upstream `{}`: GET requests without any text to {host}, {with}, that ask what it serves and what that \
         costs; they cost nothing{wakes}",
        upstream.name,
    )
}

fn announce(output: &mut dyn Write, subject: &Subject, plan: &Plan) -> io::Result<()> {
    let (mut read, mut written) = (0, 0);
    for probe in &plan.probes {
        read += probe.input_tokens;
        written += probe.output_tokens;
    }
    writeln!(
        output,
        "target `{}`: {} requests with texts of our own for model {} to {}; at most {read} tokens read and \
         {written} written, {} USD",
        subject.target.name,
        plan.probes.len(),
        model_name(&subject.facts.target),
        subject.host,
        usd(plan.worst_cost_nusd),
    )
}

fn agree(terminal: &mut Terminal<'_>) -> Result<(), Box<dyn Error>> {
    let Some(input) = terminal.input.as_mut() else {
        return Err("nothing was sent: without a terminal to ask at, --yes is needed".into());
    };
    write!(terminal.output, "Send them? [y/N] ")?;
    terminal.output.flush()?;
    let mut line = String::new();
    input.read_line(&mut line)?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err("nothing was sent".into()),
    }
}

async fn ask_all<S, A>(subject: &Subject, plan: Plan, send: &S) -> Result<Answers, Box<dyn Error>>
where
    S: Fn(Subject, Probe) -> A,
    A: Future<Output = Result<Answer, Fault>>,
{
    let name = &subject.target.name;
    let mut answers = Answers::default();
    for probe in plan.probes {
        let ask = probe.ask;
        match send(subject.clone(), probe).await {
            // Whether it takes a field shows only where it answers without one.
            Ok(answer) if ask == Ask::Plain && !(200..300).contains(&answer.status) => {
                let status = answer.status;
                return Err(format!(
                    "target `{name}` answers a plain request with status {status}; nothing was found out"
                )
                .into());
            }
            Ok(answer) => answers.put(ask, answer),
            Err(fault) if ask == Ask::Plain => {
                let why = fault.message;
                return Err(format!("target `{name}` does not answer: {why}").into());
            }
            // One question stays open.
            Err(_) => {}
        }
    }
    Ok(answers)
}

fn show(
    output: &mut dyn Write,
    subject: &Subject,
    provider: Option<&str>,
    found: &Findings,
) -> io::Result<()> {
    let by = provider.map_or_else(String::new, |provider| format!(", answered by {provider}"));
    writeln!(output, "target `{}`{by}:", subject.target.name)?;
    let document = serde_json::to_value(found).unwrap_or_default();
    for (name, value) in document.as_object().into_iter().flatten() {
        let word = match value {
            serde_json::Value::Bool(true) => "yes",
            serde_json::Value::Bool(false) => "no",
            serde_json::Value::String(word) => word,
            _ => "open",
        };
        writeln!(output, "  {name:<16} {word}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
